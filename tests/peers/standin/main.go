// A stand-in for Pyroscope and Parca, which cannot be had as programs: Pyroscope's own generated code takes what is pushed to
// it, the requests to Parca are read field by field, and pprof's own parser reads and checks the profiles. For each series it
// prints a line of JSON. The first line says where it listens.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// What is printed of a series.
type series struct {
	Protocol      string             `json:"protocol"`
	Tenant        string             `json:"tenant"`
	Authorization string             `json:"authorization"`
	Normalized    bool               `json:"normalized"`
	RequestBytes  int                `json:"request_bytes"`
	Labels        map[string]string  `json:"labels"`
	SampleTypes   []string           `json:"sample_types"`
	PeriodType    string             `json:"period_type"`
	Samples       int                `json:"samples"`
	Functions     map[string][]int64 `json:"functions"`
	SampleLabels  map[string]bool    `json:"sample_labels"`
}

var printing sync.Mutex

func show(labels map[string]string, raw []byte, one series) error {
	parsed, err := profile.Parse(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if err := parsed.CheckValid(); err != nil {
		return err
	}
	one.Labels = labels
	one.PeriodType = parsed.PeriodType.Type + "/" + parsed.PeriodType.Unit
	for _, it := range parsed.SampleType {
		one.SampleTypes = append(one.SampleTypes, it.Type+"/"+it.Unit)
	}
	one.Samples = len(parsed.Sample)
	one.Functions = map[string][]int64{}
	one.SampleLabels = map[string]bool{}
	for _, sample := range parsed.Sample {
		for name := range sample.Label {
			one.SampleLabels[name] = true
		}
		for name := range sample.NumLabel {
			one.SampleLabels[name] = true
		}
		leaf := ""
		if len(sample.Location) > 0 {
			leaf = sample.Location[0].Line[0].Function.Name
		}
		sums := one.Functions[leaf]
		if sums == nil {
			sums = make([]int64, len(sample.Value))
		}
		for idx, value := range sample.Value {
			sums[idx] += value
		}
		one.Functions[leaf] = sums
	}
	printing.Lock()
	defer printing.Unlock()
	return json.NewEncoder(os.Stdout).Encode(one)
}

type pyroscope struct {
	pushv1connect.UnimplementedPusherServiceHandler
}

func (pyroscope) Push(_ context.Context, request *connect.Request[pushv1.PushRequest]) (*connect.Response[pushv1.PushResponse], error) {
	about := series{
		Protocol:      "pyroscope",
		Tenant:        request.Header().Get("X-Scope-OrgID"),
		Authorization: request.Header().Get("Authorization"),
		RequestBytes:  request.Msg.SizeVT(),
	}
	for _, it := range request.Msg.Series {
		labels := map[string]string{}
		for _, label := range it.Labels {
			if _, has := labels[label.Name]; has {
				return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("two labels %s", label.Name))
			}
			labels[label.Name] = label.Value
		}
		for _, sample := range it.Samples {
			if err := show(labels, sample.RawProfile, about); err != nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, err)
			}
		}
	}
	return connect.NewResponse(&pushv1.PushResponse{}), nil
}

// Messages as they are.
type rawCodec struct{}

func (rawCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (rawCodec) Unmarshal(bytes []byte, message any) error {
	*message.(*[]byte) = append([]byte{}, bytes...)
	return nil
}

func (rawCodec) Name() string { return "proto" }

var _ encoding.Codec = rawCodec{}

// Calls `each` with the number and the value of each field; a varint is its number.
func fields(message []byte, each func(protowire.Number, []byte, uint64) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var value []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(message)
		default:
			return fmt.Errorf("field %d of an unexpected kind %d", number, kind)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := each(number, value, varint); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

// One of Parca's requests: series = 2 {labels = 1 {labels = 1 {name = 1, value = 2}}, samples = 2 {raw_profile = 1}},
// normalized = 3.
func writeRaw(message []byte, about series) error {
	var all [][]byte
	err := fields(message, func(number protowire.Number, value []byte, varint uint64) error {
		switch number {
		case 2:
			all = append(all, value)
		case 3:
			about.Normalized = varint == 1
		default:
			return fmt.Errorf("a request has no field %d", number)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, one := range all {
		labels := map[string]string{}
		var profiles [][]byte
		err := fields(one, func(number protowire.Number, value []byte, _ uint64) error {
			return fields(value, func(inner protowire.Number, value []byte, _ uint64) error {
				if number == 2 && inner == 1 {
					profiles = append(profiles, value)
					return nil
				}
				var pair [3]string
				err := fields(value, func(part protowire.Number, text []byte, _ uint64) error {
					pair[part] = string(text)
					return nil
				})
				labels[pair[1]] = pair[2]
				return err
			})
		})
		if err != nil {
			return err
		}
		for _, raw := range profiles {
			if err := show(labels, raw, about); err != nil {
				return err
			}
		}
	}
	return nil
}

func parca(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if method != "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw" {
		return status.Error(codes.Unimplemented, method)
	}
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	about := series{Protocol: "parca", RequestBytes: len(message)}
	if headers, ok := metadata.FromIncomingContext(stream.Context()); ok {
		if values := headers.Get("authorization"); len(values) > 0 {
			about.Authorization = values[0]
		}
	}
	if err := writeRaw(message, about); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return stream.SendMsg(&[]byte{})
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return listener
}

func main() {
	toPyroscope, toParca := listen(), listen()
	mux := http.NewServeMux()
	mux.Handle(pushv1connect.NewPusherServiceHandler(pyroscope{}))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Handler: mux, Protocols: &protocols}
	go func() { panic(server.Serve(toPyroscope)) }()
	grpcServer := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(parca))
	fmt.Println(toPyroscope.Addr(), toParca.Addr())
	panic(grpcServer.Serve(toParca))
}
