"""The split of a cluster's CPUs and GPUs."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import AuthenticationError, RayTaskError

from ssdd.config import ConfigError
from ssdd.runtime import cluster
from ssdd.runtime.cluster import find_cluster
from ssdd.runtime.errors import message_of, original_error
from ssdd.runtime.plan import (
    Node,
    Plan,
    ResourceError,
    cpu_nodes_first,
    lanes,
    make_plan,
    without_lost_nodes,
    workers_for,
)
from ssdd.runtime.ray_internals import gcs_status
from ssdd.storage.paths import to_path


def assert_can_be_met(plan: Plan, cpus: float, gpus: float) -> None:
    assert min(plan.workers, plan.crf_actors, plan.data_tasks, plan.threads) >= 1
    assert 0 < plan.unit <= 1
    assert plan.unit * (plan.workers + plan.crf_actors + plan.data_tasks) <= cpus + 1e-9
    if plan.use_gpu:
        assert plan.workers <= gpus


@pytest.mark.parametrize("gpus", [0, 1, 4])
@pytest.mark.parametrize("workers", [None, 1, 2])
@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 64])
def test_the_usual_clusters(cpus, workers, gpus):
    use_gpu = False if gpus < (workers or 1) else None
    if use_gpu is False and (workers or 1) > cpus:
        with pytest.raises(ResourceError, match=f"at most {cpus} workers"):
            make_plan(cpus, gpus, 1, workers, use_gpu)
        return
    plan = make_plan(cpus, gpus, 1, workers, use_gpu)
    assert_can_be_met(plan, cpus, gpus)
    assert plan.use_gpu == (gpus > 0 and use_gpu is None)
    assert plan.workers == (workers or (gpus if plan.use_gpu else min(2, cpus)))
    assert plan.network_resources == ({"CPU": plan.unit, "GPU": 1} if plan.use_gpu else {"CPU": plan.unit})


@settings(max_examples=300)
@given(
    cpus=st.integers(1, 256) | st.floats(1, 256),
    gpus=st.integers(0, 16),
    nodes=st.integers(1, 8),
    workers=st.none() | st.integers(1, 32),
    use_gpu=st.none() | st.booleans(),
)
def test_a_plan_can_be_met_or_is_refused_with_what_to_change(cpus, gpus, nodes, workers, use_gpu):
    try:
        plan = make_plan(cpus, gpus, nodes, workers, use_gpu)
    except ResourceError as refusal:
        message = str(refusal)
    else:
        message = ""
    if message:
        assert "--workers" in message or "--gpus" in message
        return
    assert_can_be_met(plan, cpus, gpus)
    if workers is not None:
        assert plan.workers == workers
    if use_gpu is not None:
        assert plan.use_gpu == use_gpu


@settings(max_examples=100)
@given(st.integers(1, 256), st.integers(1, 8))
def test_no_request_is_refused_at_the_number_of_workers_that_the_refusal_names(cpus, nodes):
    with pytest.raises(ResourceError, match="at most") as error:
        make_plan(cpus, 0, nodes, 1000, None)
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert make_plan(cpus, 0, nodes, most, None).workers == most
    with pytest.raises(ResourceError):
        make_plan(cpus, 0, nodes, most + 1, None)


@pytest.mark.parametrize("cpus", [8, 9, 64])
def test_all_cpus_are_used_where_there_are_enough(cpus):
    plan = make_plan(cpus, 0, 1, None, None)
    assert plan.unit == 1
    assert plan.workers + plan.crf_actors + plan.data_tasks == cpus


def test_without_gpus_there_are_two_workers_a_node_where_it_has_two_cpus():
    assert make_plan(64, 0, 4, None, None).workers == 8
    assert make_plan(4, 0, 4, None, None).workers == 4


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_on_nodes_of_one_cpu_every_process_finds_a_node(nodes):
    plan = make_plan(nodes, 0, nodes, None, None)
    processes = plan.workers + plan.crf_actors + plan.data_tasks
    assert nodes * int(1 / plan.unit + 1e-9) >= processes


def test_gpus_can_be_left_unused():
    plan = make_plan(16, 4, 1, None, False)
    assert (plan.use_gpu, plan.workers) == (False, 2)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ((0.5, 0, 1, None, None), r"has 0\.5 CPUs; at least 1 is needed \(`ray start --num-cpus`\)"),
        ((4, 0, 1, None, True), r"--gpus True, but the cluster has 0 GPUs; leave --gpus out"),
        ((16, 2, 1, 3, None), r"--workers 3 on GPUs, but the cluster has 2 GPUs; ask for at most that many"),
        ((4, 0, 1, 5, None), r"--workers 5, but the cluster has 4 CPUs and no GPUs; ask for at most 4 workers"),
        ((1, 0, 1, 2, None), r"ask for at most 1 workers"),
    ],
)
def test_impossible_requests_say_what_to_change(request_, message):
    with pytest.raises(ResourceError, match=message):
        make_plan(*request_)


@contextlib.contextmanager
def grpc_server(call=None):
    """The address of a server that answers one call as a Ray head does, with the status UNAUTHENTICATED, or none."""

    def answer(request, context):
        if call == "token":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    if call:
        handler = grpc.method_handlers_generic_handler(
            "ray.rpc.NodeInfoGcsService", {"CheckAlive": grpc.unary_unary_rpc_method_handler(answer)}
        )
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.fixture(params=["alive", "token"])
def listening(request):
    with grpc_server(request.param) as address:
        yield address


@pytest.fixture
def gone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def left_behind(monkeypatch, folder, address):
    """As if `ray start` had written an address down, or nothing for None."""
    (folder / "ray").mkdir(exist_ok=True)
    path = folder / "ray" / "ray_current_cluster"
    path.write_text(f"{address}\n") if address else path.unlink(missing_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))


@pytest.mark.parametrize("named", [None, "", "auto"])
def test_a_cluster_that_was_started_here_is_found(named, listening, monkeypatch, tmp_path):
    left_behind(monkeypatch, tmp_path, listening)
    monkeypatch.setenv("RAY_ADDRESS", named) if named is not None else monkeypatch.delenv("RAY_ADDRESS", False)
    assert find_cluster() == listening


def test_a_cluster_that_is_gone_does_not_stop_a_local_run(gone, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", False)
    left_behind(monkeypatch, tmp_path, gone)
    assert find_cluster() == "local"
    left_behind(monkeypatch, tmp_path, None)
    assert find_cluster() == "local"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_ray_address_names_the_cluster(scheme, listening, gone, monkeypatch, tmp_path):
    left_behind(monkeypatch, tmp_path, gone)
    monkeypatch.setenv("RAY_ADDRESS", scheme + listening)
    assert find_cluster() == scheme + listening
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_cluster() == "local"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nothing_answers_the_message_says_so(scheme, gone, listening, monkeypatch, tmp_path):
    left_behind(monkeypatch, tmp_path, listening)
    monkeypatch.setenv("RAY_ADDRESS", scheme + gone)
    with pytest.raises(ResourceError, match=f"RAY_ADDRESS={scheme}{gone}: no Ray cluster answers there"):
        find_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ResourceError, match="unset RAY_ADDRESS"):
        find_cluster()


def test_something_else_at_the_address_is_told_at_once(monkeypatch, tmp_path):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with web, grpc_server() as other:
        for address, status in ((f"127.0.0.1:{web.server_port}", "UNAVAILABLE"), (other, "UNIMPLEMENTED")):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(ResourceError, match=f"{address}: no Ray cluster .*is not a Ray head node.*{status}"):
                find_cluster()
            monkeypatch.delenv("RAY_ADDRESS")
            left_behind(monkeypatch, tmp_path, address)  # the port of a Ray that is gone, taken by another program
            assert find_cluster() == "local"
        web.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert gcs_status(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5) == "DEADLINE_EXCEEDED"


def test_a_dashboards_address_is_told_from_a_heads(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ResourceError, match=r"address of a dashboard, to which `ray job submit` sends jobs.*6379"):
        find_cluster()


@pytest.mark.parametrize(
    ("error", "named", "hint"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /a/b"), None, "set RAY_TMPDIR to a short path"),
        (PermissionError(13, "Permission denied", "/tmp/ray/session_1"), None, "set RAY_TMPDIR to a folder"),
        (PermissionError(13, "Permission denied", str(Path.home() / ".ray")), None, "set HOME to a folder"),
        (OSError(30, "Read-only file system", str(Path.home() / ".ray")), None, "set HOME to a folder"),
        (AuthenticationError("no authentication token was found"), "127.0.0.1:1", "set RAY_AUTH_MODE=token"),
        (
            RuntimeError("Version mismatch: The cluster was started with: Ray: 2.1"),
            "127.0.0.1:1",
            "versions of Ray and",
        ),
        (RuntimeError("The current node timed out during startup."), None, "session_latest/logs"),
        (ConnectionError("Failed to connect to Ray cluster"), "127.0.0.1:1", "`ray status` on its head node"),
    ],
)
def test_what_ray_says_at_its_start_comes_with_what_helps(error, named, hint, monkeypatch):
    def init(address, **options):
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ResourceError) as caught:
        cluster._init("auto" if named else "local", named or "local")
    assert str(error) in str(caught.value)
    assert hint in str(caught.value)


def test_a_full_disk_is_no_fault_of_rays(monkeypatch):
    def init(address, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(OSError, match="No space left"):
        cluster._init("local", "local")


def test_a_refused_token_is_told_from_a_cluster_that_is_gone(monkeypatch):
    error = ConnectionError("Failed to connect to Ray cluster")  # what Ray says in both cases
    with grpc_server("token") as address:
        assert "RAY_AUTH_TOKEN" in cluster.remedy(error, address)
    assert "ray status" in cluster.remedy(error, address)


def test_a_path_that_is_too_long_for_rays_sockets(tmp_path):
    """Ray itself refuses it, before it starts anything."""
    folder = tmp_path / ("x" * 50) / ("y" * 50)
    folder.mkdir(parents=True)
    code = (
        "import ssdd.runtime.environment; from ssdd.presets import PRESETS; from ssdd.runtime import cluster\n"
        "cluster.connect(PRESETS['mini']())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"RAY_TMPDIR": str(folder)},
    )
    assert "ResourceError: Ray does not start" in done.stderr
    assert "set RAY_TMPDIR to a short path" in done.stderr


@given(cpus=st.integers(1, 64), gpus=st.integers(0, 8), nodes=st.integers(1, 4), wanted=st.integers(1, 6))
def test_lanes_fit_into_the_cluster_together(cpus, gpus, nodes, wanted):
    nodes = min(nodes, cpus)
    gpus = min(gpus, cpus)
    plan = make_plan(cpus, gpus, nodes, None, None)
    lane, count = lanes(plan, cpus, wanted)
    assert 1 <= count <= wanted
    assert count * lane.workers <= plan.workers
    assert lane.workers >= 1
    assert lane.crf_actors >= 1
    assert lane.data_tasks >= 1
    assert count * lane.unit * (lane.workers + lane.crf_actors + lane.data_tasks) <= cpus + 1e-9
    if wanted == 1:
        assert lane == plan


@pytest.mark.parametrize(
    ("share", "wanted", "expected"), [(1, 8, (2, 1)), (0.5, 8, (4, 1)), (0.3, 3, (3, 1)), (0.5, 1, (1, 2))]
)
def test_lanes_may_share_gpus(share, wanted, expected):
    whole = make_plan(16, 2, 1, None, None)
    plan, count = lanes(whole, 16, wanted, share)
    assert (count, plan.workers) == expected
    share = share if wanted > 2 else 1  # a training of several workers wants whole ones
    assert plan.network_resources["GPU"] == share
    assert count * plan.workers * share <= 2
    assert count * plan.unit * (plan.workers + plan.crf_actors + plan.data_tasks) <= 16 + 1e-9


def test_what_needs_no_gpu_goes_to_nodes_without_gpus_first_and_in_turns():
    nodes = [Node("gpu", 8, 2), Node("a", 2, 0), Node("b", 1, 0)]
    assert cpu_nodes_first(nodes, 3, 1) == ["a", "b", "a"]
    assert cpu_nodes_first(nodes, 2, 1) == ["a", "b"]
    assert cpu_nodes_first(nodes, 5, 1) == ["a", "b", "a", "gpu", "gpu"]
    assert cpu_nodes_first(nodes, 20, 1) == ["a", "b", "a", *["gpu"] * 6], (
        "a training worker for each GPU needs a share"
    )
    assert cpu_nodes_first(nodes, 4, 0.5) == ["a", "b", "a", "b"]
    assert cpu_nodes_first([Node("gpu", 8, 1)], 2, 1) == ["gpu", "gpu"]
    assert cpu_nodes_first(nodes, 0, 1) == []
    server = [Node("server", 4, 8)]
    assert cpu_nodes_first(server, 2, 1, workers=1) == ["server"] * 2, "only one of its eight GPUs is used"
    assert cpu_nodes_first(server, 2, 1) == ["server"], "a pool has at least one actor"


@pytest.mark.parametrize(
    ("before", "left"),
    [
        ([Node("a", 4, 0), Node("b", 4, 0)], 1),
        ([Node("a", 8, 0), Node("b", 8, 0)], 1),
        ([Node(str(k), 4, 0) for k in range(4)], 3),
        ([Node("a", 8, 1), Node("b", 8, 1)], 1),
        ([Node("a", 8, 1), Node("b", 16, 0), Node("c", 16, 0)], 2),
        ([Node("a", 1, 0), Node("b", 1, 0)], 1),
    ],
)
def test_after_a_loss_the_processes_fit_into_the_rest(before, left):
    cpus, gpus = sum(n.cpus for n in before), sum(n.gpus for n in before)
    plan = make_plan(cpus, gpus, len(before), None, None)
    assert without_lost_nodes(plan, before) == without_lost_nodes(plan, before, plan.crf_actors) == plan
    rest = before[:left]
    room = sum(int(n.cpus / plan.unit) for n in rest)
    smaller = without_lost_nodes(plan, rest)
    assert 0 < smaller.workers + smaller.data_tasks + smaller.crf_actors <= room
    assert min(smaller.workers, smaller.data_tasks, smaller.crf_actors) > 0
    if room < plan.crf_actors + 2:
        with pytest.raises(ResourceError, match="give the same command again"):
            without_lost_nodes(plan, rest, plan.crf_actors)
        return
    beside_pool = without_lost_nodes(plan, rest, plan.crf_actors)
    assert beside_pool.workers + beside_pool.data_tasks + plan.crf_actors <= room
    assert beside_pool.crf_actors == plan.crf_actors


def test_a_gpu_worker_needs_cpus_of_its_node():
    nodes = [Node("gpu", 2, 4), Node("cpu", 32, 0)]
    plan = make_plan(34, 4, 2, None, None)
    assert (plan.workers, plan.unit) == (4, 1)
    assert without_lost_nodes(plan, nodes).workers == 2


def test_threads_are_those_of_the_nodes():
    assert make_plan(64, 0, 4, None, None).threads == 8
    assert make_plan(8, 0, 1, None, None, cores=2).threads == 1, "a local Ray with more CPUs than there are"


def test_a_workspace_that_only_this_node_sees_is_refused(tmp_path, monkeypatch):
    nodes = [{"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": name != "4"} for name in "1234"]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "1"))
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    seen = []

    def options(label_selector):
        def remote(path):
            seen.append(Path(path).exists())
            return label_selector == {"ray.io/node-id": "3"}

        return SimpleNamespace(remote=remote)

    monkeypatch.setattr(cluster, "_sees", SimpleNamespace(options=options))
    with pytest.raises(
        ConfigError, match=r"--workspace .*: is not the same on the node 10\.0\.0\.2; use a disk that all nodes"
    ):
        cluster.check_writes(tmp_path, "--workspace")
    assert seen == [True, True]
    assert not list(tmp_path.iterdir())
    cluster.check_writes(to_path("s3://bucket/w"), "--workspace")
    nodes[1:] = []
    cluster.check_writes(tmp_path, "--workspace")


def test_what_a_task_raised_is_said_without_rays_report_of_it():
    raised = ValueError("short\nFailed to apply UDF transform after 1/1 attempts")
    error = RayTaskError("task", "a long traceback", raised).as_instanceof_cause()
    assert original_error(error) is raised
    assert message_of(error) == "short"
    assert message_of(AssertionError()) == "AssertionError()"


@pytest.mark.parametrize(("images", "available", "workers"), [(8, 3, 2), (16, 6, 4), (16, 5, 4), (8, 8, 8), (7, 3, 1)])
def test_the_workers_of_a_training_divide_its_images(images, available, workers):
    assert workers_for(images, available) == workers


@given(images=st.integers(1, 300), available=st.integers(1, 64))
def test_no_larger_number_of_workers_divides_the_images(images, available):
    workers = workers_for(images, available)
    assert 1 <= workers <= available
    assert images % workers == 0
    assert not any(images % more == 0 for more in range(workers + 1, available + 1))


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        *((None, True), ("", True), ("auto", True), ("local", True), ("127.0.0.1:6379", True), ("localhost:1", True)),
        *(("10.0.0.5:6379", False), ("ray://10.0.0.5:10001", False), ("head:6379", False)),
    ],
)
def test_a_local_ray_stays_on_loopback_and_a_cluster_that_is_named_does_not(address, stays):
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    env = {k: v for k, v in os.environ.items() if k not in (name, "RAY_ADDRESS")}
    env |= {} if address is None else {"RAY_ADDRESS": address}
    code = f"import os, ssdd.runtime.environment; print(os.environ.get('{name}'))"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == ("0" if stays else "None")
