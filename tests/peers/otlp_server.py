"""Takes OTLP profiles with the code that OpenTelemetry generates for Python, and prints a line of JSON each request.

    otlp_server.py FOLDER ANSWER...

The first line says where it listens. Each request is answered with the next ANSWER, the last one for ever: `ok`,
`partial` (2 profiles rejected), a code of gRPC in lower case, or `later:SECONDS` (unavailable, with a RetryInfo). The bytes of
request N are in FOLDER/N.bin.
"""

import concurrent.futures
import json
import sys
import threading
import time

import grpc
from google.protobuf import any_pb2, duration_pb2
from opentelemetry.proto.collector.profiles.v1development import profiles_service_pb2

folder, answers = sys.argv[1], sys.argv[2:]
lock = threading.Lock()
n_requests = 0


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def retry_info(seconds):
    """A google.rpc.Status with a RetryInfo, encoded by hand: `details` is field 3, `retry_delay` field 1."""
    delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)).SerializeToString()
    detail = any_pb2.Any(
        type_url="type.googleapis.com/google.rpc.RetryInfo", value=bytes([0x0A, len(delay)]) + delay
    ).SerializeToString()
    return bytes([0x1A, len(detail)]) + detail


def describe(request):
    table = request.dictionary
    strings = table.string_table
    resources = []
    for of_resource in request.resource_profiles:
        attributes = {it.key: value(it.value) for it in of_resource.resource.attributes}
        profiles = []
        for scope in of_resource.scope_profiles:
            for profile in scope.profiles:
                functions, stacks, labels = {}, [], set()
                for sample in profile.samples:
                    stack = []
                    for location in table.stack_table[sample.stack_index].location_indices:
                        line = table.location_table[location].lines[0]
                        stack.append(strings[table.function_table[line.function_index].name_strindex])
                    leaf = stack[0] if stack else ""
                    functions[leaf] = functions.get(leaf, 0) + sum(sample.values)
                    for index in sample.attribute_indices:
                        labels.add(strings[table.attribute_table[index].key_strindex])
                kind = profile.sample_type
                profiles.append({
                    "type": f"{strings[kind.type_strindex]}/{strings[kind.unit_strindex]}",
                    "functions": functions,
                    "labels": sorted(labels),
                    "id": profile.profile_id.hex(),
                    "time_ns": profile.time_unix_nano,
                })
        resources.append({"attributes": attributes, "profiles": profiles})
    return resources


def export(message, context):
    global n_requests
    with lock:
        number = n_requests
        n_requests += 1
        answer = answers[min(number, len(answers) - 1)]
        with open(f"{folder}/{number}.bin", "wb") as file:
            file.write(message)
        request = profiles_service_pb2.ExportProfilesServiceRequest.FromString(message)
        line = {
            "number": number,
            "time": time.monotonic(),
            "n_bytes": len(message),
            "answer": answer,
            "headers": {key: value for key, value in context.invocation_metadata() if isinstance(value, str)},
            "resources": describe(request),
        }
        print(json.dumps(line), flush=True)
    response = profiles_service_pb2.ExportProfilesServiceResponse()
    if answer == "partial":
        response.partial_success.rejected_profiles = 2
        response.partial_success.error_message = "no room"
    elif answer.startswith("later:"):
        context.set_trailing_metadata([("grpc-status-details-bin", retry_info(float(answer[6:])))])
        context.abort(grpc.StatusCode.UNAVAILABLE, "later")
    elif answer != "ok":
        context.abort(grpc.StatusCode[answer.upper()], f"this is {answer}")
    return response.SerializeToString()


def main():
    # One at a time: the order is seen.
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    service = "opentelemetry.proto.collector.profiles.v1development.ProfilesService"
    # Messages come as bytes.
    handler = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    # Until the one that started it goes.
    sys.stdin.read()


main()
