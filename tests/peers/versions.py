"""Clients and agents of other versions of pyagent.v1, made from a .proto by what is taken away from it or added to it.

    versions.py PROTOS older client ADDRESS PID     asks an agent, prints one line of JSON: what it said
    versions.py PROTOS newer client ADDRESS PID
    versions.py PROTOS older agent                  serves without one method; the first line says where
    versions.py PROTOS newer agent                  serves with more than is known today

`older` lacks fields, a value of an enum and methods; `newer` has more of each. PROTOS is the folder that it is made from.
"""
import concurrent.futures
import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from google.protobuf import descriptor_pb2
from google.protobuf.duration_pb2 import Duration
from grpc_tools import protoc

PROTO = "pyagent/v1/profile_service.proto"
# A number that nothing has yet.
FUTURE = 1000
# What the agent gives, three samples.
PROFILE = b"work (app.py:7) 3\n"


def descriptors(protos, folder):
    """The .proto as data, with all that it imports."""
    path = f"{folder}/set"
    included = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{protos}", f"-I{included}", "--include_imports", f"--descriptor_set_out={path}", PROTO]
    assert protoc.main(arguments) == 0, "protoc failed"
    return descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(path).read_bytes())


def make_older(file):
    """Without a third of the fields of each message, the last ones, one state of processes, and all methods but the first two."""
    for message in file.message_type:
        if message.oneof_decl or len(message.field) < 2:
            continue
        fields = sorted(message.field, key=lambda field: field.number)
        for field in fields[max(1, len(fields) * 2 // 3):]:
            message.field.remove(field)
    for enum in file.enum_type:
        for value in [value for value in enum.value if value.name == "PROCESS_STATE_PROFILED"]:
            enum.value.remove(value)
    del file.service[0].method[2:]


def make_newer(file):
    """With another field in each message, another part of a profile, another value of each enum, and another method."""
    for message in file.message_type:
        field = message.field.add(name="future", number=FUTURE, json_name="future")
        field.type = field.TYPE_STRING
        field.label = field.LABEL_OPTIONAL
        # Not one that `optional` makes.
        if message.oneof_decl and not any(field.proto3_optional for field in message.field):
            field.oneof_index = 0
    for enum in file.enum_type:
        enum.value.add(name=f"{enum.name}_FUTURE", number=FUTURE)
    method = file.service[0].method.add(name="FutureCall")
    method.input_type, method.output_type = ".pyagent.v1.GetStatusRequest", ".pyagent.v1.GetStatusResponse"


def generate(protos, version):
    folder = tempfile.mkdtemp()
    found = descriptors(protos, folder)
    file = next(file for file in found.file if file.name == PROTO)
    make_older(file) if version == "older" else make_newer(file)
    path = f"{folder}/changed"
    pathlib.Path(path).write_bytes(found.SerializeToString())
    arguments = ["protoc", f"--descriptor_set_in={path}", f"--python_out={folder}", f"--grpc_python_out={folder}", PROTO]
    assert protoc.main(arguments) == 0, "protoc failed"
    sys.path.insert(0, folder)
    from pyagent.v1 import profile_service_pb2, profile_service_pb2_grpc

    return profile_service_pb2, profile_service_pb2_grpc


def client(version, messages, services, address, pid):
    is_newer = version == "newer"
    # What an agent of today has never heard of.
    more = {"future": "x"} if is_newer else {}
    with grpc.insecure_channel(address) as channel:
        service = services.ProfileServiceStub(channel)
        listed = service.ListProcesses(messages.ListProcessesRequest(**more)).processes
        mine = next(process for process in listed if process.pid == pid)
        selector = messages.ProcessSelector(pids=[pid], **more)
        request = messages.PullProfileRequest(selector=selector, duration=Duration(seconds=1), format="folded", **more)
        parts = list(service.PullProfile(request))
        future_call = ""
        if is_newer:
            try:
                service.FutureCall(messages.GetStatusRequest())
            except grpc.RpcError as error:
                future_call = error.code().name
        known = [value.name for value in messages.ProcessState.DESCRIPTOR.values]
        said = {
            "state": mine.state,
            "knows_state": "PROCESS_STATE_PROFILED" in known,
            "python_version": mine.python_version,
            "has_service_name": "service_name" in mine.DESCRIPTOR.fields_by_name,
            "has_watch": hasattr(service, "WatchProfiles"),
            "future_field": getattr(mine, "future", None),
            "future_call": future_call,
            "n_samples": parts[0].metadata.n_samples,
            "profile": b"".join(part.chunk for part in parts[1:]).decode(),
        }
    print(json.dumps(said))


def agent(version, messages, services):
    class Agent(services.ProfileServiceServicer):
        def PullProfile(self, request, context):
            yield messages.PullProfileResponse(future="before the rest")
            metadata = {"format": request.format, "n_samples": 3, "size_bytes": len(PROFILE), "future": "x"}
            yield messages.PullProfileResponse(metadata=messages.ProfileMetadata(**metadata))
            yield messages.PullProfileResponse(chunk=PROFILE[:4])
            yield messages.PullProfileResponse(future="between the rest")
            yield messages.PullProfileResponse(chunk=PROFILE[4:])

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    if version == "newer":
        services.add_ProfileServiceServicer_to_server(Agent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    # Until the one that started it goes.
    sys.stdin.read()


protos, version, role = sys.argv[1:4]
generated = generate(protos, version)
if role == "client":
    client(version, *generated, sys.argv[4], int(sys.argv[5]))
else:
    agent(version, *generated)
