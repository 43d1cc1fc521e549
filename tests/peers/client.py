"""A client of pyagent.v1, made from the .proto as it stands by other people's generator.

Arguments: the folder with the .proto files, the agent's address, a process id. Prints one line of JSON: what the agent said.
"""
import gzip
import json
import pathlib
import sys
import tempfile

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_tools import protoc

protos, address, pid = sys.argv[1], sys.argv[2], int(sys.argv[3])
made = tempfile.mkdtemp()
# What the package has of google/protobuf lies beside its generator.
import grpc_tools  # noqa: E402

included = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
proto = "pyagent/v1/profile_service.proto"
code = protoc.main(["protoc", f"-I{protos}", f"-I{included}", f"--python_out={made}", f"--grpc_python_out={made}", proto])
assert code == 0, "protoc failed"
sys.path.insert(0, made)

from pyagent.v1 import profile_service_pb2 as messages  # noqa: E402
from pyagent.v1 import profile_service_pb2_grpc as services  # noqa: E402


def pull(service, **fields):
    selector = messages.ProcessSelector(pids=[pid])
    parts = list(service.PullProfile(messages.PullProfileRequest(selector=selector, **fields)))
    metadata = parts[0].metadata
    chunks = b"".join(part.chunk for part in parts[1:])
    assert len(chunks) == metadata.size_bytes, (len(chunks), metadata)
    return metadata.n_samples, chunks


with grpc.insecure_channel(address) as channel:
    service = services.ProfileServiceStub(channel)
    listed = service.ListProcesses(messages.ListProcessesRequest()).processes
    mine = [process for process in listed if process.pid == pid]
    n_live, live = pull(service, duration=Duration(seconds=1))
    n_folded, folded = pull(service, last=Duration(seconds=60), format="folded")
    watched = []
    stream = service.WatchProfiles(messages.WatchProfilesRequest(types=["cpu"]))
    for message in stream:
        if message.WhichOneof("part") == "profile":
            watched.append(message.profile.type)
        if len(watched) == 2:
            stream.cancel()
            break
    try:
        pull(service, type="nothing")
        refused = ""
    except grpc.RpcError as error:
        refused = error.code().name
    status = service.GetStatus(messages.GetStatusRequest())
    print(
        json.dumps(
            {
                "state": messages.ProcessState.Name(mine[0].state),
                "python_version": mine[0].python_version,
                "n_live": n_live,
                "is_gzip": len(gzip.decompress(live)) > 0,
                "n_recorded": n_folded,
                "functions": folded.decode(),
                "watched": watched,
                "refused": refused,
                "version": status.version,
                "recorder": status.recorder.folder,
            }
        )
    )
