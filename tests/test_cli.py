"""The command line: what a person gets wrong costs one line and exit code 2, and leaves nothing in MLflow."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlflow.cell import CellIdentity
from rlflow.cli import app, is_expected
from rlflow.commands.checkpoint import RECORD
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.store import Store, ensure_experiment, open_store, search_runs
from rlflow.task import Answer, Evaluation
from rlflow.toy import ToyTask
from rlflow.tracking import start_seed
from tests.toys import SUITE

pytest_plugins = ("tests.mlflow_fixtures",)

SMALL = ["trainer.budget=64", "trainer.num_evaluations=3", "trainer.accelerator=cpu"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def experiments(store: Store) -> list[str]:
    return [found.name for found in store.client.search_experiments()]


def test_a_suite_is_planned_without_the_model_libraries() -> None:
    program = (
        "import sys\n"
        "from rlflow.matrix import plan_cells\n"
        "from rlflow.suite import load_suite\n"
        "assert len(plan_cells(load_suite('core'), 'smoke')) == 15\n"
        "print(sorted({'transformers', 'diffusers', 'lightning', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def matrix_apart(suite: Path, results: Path) -> tuple[int, list[str]]:
    """`rlflow matrix SUITE --dry-run` in a process without torch: exit code, and the lines with what it has loaded."""
    program = (
        "import sys\n"
        "from rlflow.cli import app\n"
        "code = 0\n"
        "try:\n"
        f"    app(['matrix', {str(suite)!r}, '--budget', 'quick', '--results', {str(results)!r}, '--dry-run'])\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "print('torch' in sys.modules, 'mlflow' in sys.modules)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, [*done.stderr.splitlines(), *done.stdout.splitlines()]


def test_a_matrix_is_planned_in_a_process_of_its_own_beside_mlflow(tmp_path: Path) -> None:
    suite = tmp_path / "toys.yaml"
    suite.write_text(SUITE)
    code, lines = matrix_apart(suite, tmp_path / "results")
    assert (code, lines[-1]) == (0, "False True"), lines
    assert [line.split() for line in lines if "toy" in line] == [["ppo", "toy", "to", "do"], ["fpo", "toy", "to", "do"]]

    # What the planning process refuses is told here, in one line.
    suite.write_text(SUITE.replace("trainer.num_evaluations: 4", "trainer.num_evaluation: 4"))
    code, lines = matrix_apart(suite, tmp_path / "results")
    assert (code, lines[-1], len(lines)) == (2, "False True", 2), lines
    assert lines[0].startswith("error: ")
    assert "trainer.num_evaluations" in lines[0]


def test_help_is_quick_and_loads_no_heavy_library() -> None:
    program = (
        "import sys, rlflow.cli\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    begin = time.process_time()
    code, output = run("--help")
    assert code == 0
    assert time.process_time() - begin < 1.0
    for command in (
        "train",
        "matrix",
        "leaderboard",
        "report",
        "eval",
        "sample",
        "list",
        "new",
        "check",
        "pretrain",
        "doctor",
    ):
        assert f" {command} " in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pppo", "toy"], "unknown algorithm 'pppo'; did you mean ppo"),
        (["ppo", "toi"], "unknown task 'toi'; did you mean toy"),
        (["ppo", "toy", "update.learning=1"], "unknown key 'update.learning'"),
        (["ppo", "toy", "update.lrr=1"], "did you mean update.lr"),
        (["ppo", "toy", "lr"], "expected section.key=value"),
        (["ppo", "toy", "update.lr=fast"], "update.lr"),
        (["ppo", "toy", "--suite", "cor"], "unknown suite 'cor'; did you mean core"),
        (["ppo", "reasoning/countdown", "--budget", "quik"], "no budget 'quik'; did you mean quick"),
        (["ppo", "toy", "update.updates_per_rollout=3"], "rows per rollout = 16 is not divisible by"),
        (["flow_grpo", "toy", "task.group_size=1"], "task.group_size: flow_grpo compares rollouts within a group"),
        (["ppo", "toy", "task.kind=flow", "algorithm.entropy_weight=0.1"], "it requires ['entropy'], which policy"),
        (["ppo", "control/NoSuchEnv-v5"], "NoSuchEnv"),
        (
            ["ppo", "reasoning/countdown", "task.base=/no/such/model"],
            "task.base: expected a file or a folder with files at /no/such/model",
        ),
        (["ppo", "toy", "--tracking-uri", "http://127.0.0.1:9"], "expected a tracking server at http://127.0.0.1:9"),
        (["ppo", "toy", "--tracking-uri", "mlruns"], "expected a tracking URI"),
        (["ppo", "toy", "--folder", "/proc/none"], "expected a folder that can be written at /proc/none"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(store: Store, arguments: list[str], words: str) -> None:
    code, output = run("train", *arguments, "--results", str(store.lock_path.parent))
    assert code == 2, output
    message = output[output.index("error:") :]
    assert words in message
    assert "Traceback" not in output
    assert experiments(store) == ["Default"]


def test_an_unwritable_results_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = run("train", "ppo", "toy", "--results", str(tmp_path / "file"))
    assert (code, "expected a folder that can be written at" in output) == (2, True)


def test_bad_suites_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "toys.yaml"
    path.write_text(SUITE.replace("algorithms", "algorithm"))
    results = str(tmp_path / "results")
    code, output = run("matrix", str(path), "--results", results)
    assert (code, "unknown key 'algorithm'; did you mean algorithms" in output) == (2, True)
    path.write_text(SUITE.replace("{trainer.budget: 96}", "{trainer.bugdet: 96}"))
    code, output = run("matrix", str(path), "--results", results)
    place = "suite toys, budget quick, ppo on toy: unknown key 'trainer.bugdet'; did you mean trainer.budget"
    assert (code, place in output) == (2, True), output
    path.write_text(SUITE)
    for arguments, words in (
        (["--add", "gspo"], "unknown algorithm 'gspo'"),
        (["--only", "trpo"], "--only 'trpo' matches none of 2 cells"),
        (["--budget", "big"], "no budget 'big'"),
    ):
        code, output = run("matrix", str(path), "--results", results, *arguments)
        assert (code, words in output) == (2, True), output
    assert not (tmp_path / "results").exists()


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_expected(ValueError("a bug"))

    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("rlflow.registry.find", broken)
    with pytest.raises(KeyError, match="a bug"):
        run("pretrain", "toy")


def test_train_then_eval_sample_and_the_board(store: Store, tmp_path: Path) -> None:
    results, folder = str(store.lock_path.parent), tmp_path / "seed"
    code, output = run("train", "ppo", "toy", *SMALL, "--seed", "5", "--folder", str(folder), "--results", results)
    assert code == 0, output
    assert "ppo on toy is not in suite core" in output
    assert "ppo on toy, seed 5, 4 iterations" in output
    assert [line.split()[0] for line in output.splitlines() if " samples " in line] == ["0", "32", "64"]
    assert output.rstrip().endswith("finished")
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})
    assert (seed.data.tags["rlflow.seed"], seed.data.tags["rlflow.division"]) == ("5", "open")
    curve = store.client.get_metric_history(seed.info.run_id, "eval/score")

    # The checkpoint judges as the run did at its end.
    code, judged = run("eval", str(folder / "last.ckpt"))
    assert code == 0, judged
    assert "ppo on toy after 64 samples" in judged
    assert float(judged.split("score")[1].split()[0]) == pytest.approx(curve[-1].value, abs=1e-5)
    # What training left is not touched: without settings the folder is named by the samples alone.
    assert {path.name for path in (folder / "evaluations" / "000000064").iterdir()} == {"per_item.csv", RECORD}

    code, output = run("sample", str(folder), "--out", str(tmp_path / "out"))
    assert (code, output.strip()) == (0, str(tmp_path / "out" / "per_item.csv"))
    code, output = run("sample", "fpo", "toy", "--out", str(tmp_path / "out"))
    assert (code, output.strip()) == (0, str(tmp_path / "out" / "per_item.csv"))

    code, output = run("leaderboard", "train@1", "--results", results, "--out", str(tmp_path / "board"))
    assert code == 0, output
    assert (tmp_path / "board" / "leaderboard.html").exists()
    code, output = run("report", "train@1", "--results", results)
    assert code == 0, output
    page = tmp_path / "results" / "reports" / "train@1" / "report.html"
    assert output.splitlines()[0].startswith(f"{page} and ")
    assert "ppo on toy: no samples recorded" in page.read_text()

    # The same folder again: the run has its result, which is never replaced.
    code, output = run("train", "ppo", "toy", *SMALL, "--seed", "5", "--folder", str(folder), "--results", results)
    assert (code, "a result is never replaced" in output) == (2, True)


def test_an_evaluation_leaves_its_files_and_its_run(store: Store, tmp_path: Path) -> None:
    results, folder = str(store.lock_path.parent), tmp_path / "seed"
    code, output = run("train", "ppo", "toy", *SMALL, "--folder", str(folder), "--results", results)
    assert code == 0, output
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})

    code, output = run("eval", str(folder), "--out", str(tmp_path / "out"), "--track", "--results", results)
    assert code == 0, output
    (judged,) = search_runs(store, ensure_experiment(store, "eval@1"), {"kind": "evaluation"})
    assert f"MLflow run {judged.info.run_id}" in output
    assert judged.info.status == "FINISHED"
    digest = hashlib.sha256((folder / "last.ckpt").read_bytes()).hexdigest()
    assert judged.data.tags["rlflow.checkpoint_sha256"] == digest
    assert judged.data.params["trainer.budget"] == seed.data.params["trainer.budget"]
    # The same names, steps and places as in the run that was trained, whose last evaluation this repeats.
    for name in (name for name in seed.data.metrics if name.startswith("eval/")):
        (point,) = store.client.get_metric_history(judged.info.run_id, name)
        last = store.client.get_metric_history(seed.info.run_id, name)[-1]
        assert (point.step, point.value) == (64, pytest.approx(last.value, abs=1e-6))
    for kept in (seed, judged):
        assert [f.path for f in store.client.list_artifacts(kept.info.run_id, "eval")] == ["eval/per_item.csv"]
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert (record["samples"], record["overrides"], record["checkpoint_sha256"]) == (64, [], digest)
    assert record["metrics"]["score"] == pytest.approx(judged.data.metrics["eval/score"])
    (kept_record,) = store.client.list_artifacts(judged.info.run_id, "samples/000000064")
    assert kept_record.path == f"samples/000000064/{RECORD}"

    # Other settings have a folder of their own; an untrained policy is judged under the results.
    code, output = run("eval", str(folder), "task.groups_per_rollout=2")
    assert code == 0, output
    (changed,) = (folder / "evaluations").iterdir()
    assert changed.name.startswith("000000064-")
    assert json.loads((changed / RECORD).read_text())["overrides"] == ["task.groups_per_rollout=2"]
    code, output = run("eval", "ppo", "toy", "--results", results)
    assert code == 0, output
    untrained = json.loads((Path(results) / "evaluations" / "ppo-toy-untrained" / RECORD).read_text())
    assert (untrained["samples"], untrained["checkpoint_sha256"]) == (0, "")
    (tmp_path / "file").write_text("")
    code, output = run("eval", str(folder), "--out", str(tmp_path / "file"))
    assert (code, "choose another with --out" in output) == (2, True)


def fill(store: Store, **finals: list[float]) -> None:
    """A suite `toy@1` with the final scores of each algorithm's seeds, of 10."""
    for algorithm, scores in finals.items():
        for seed, final in enumerate(scores):
            identity = CellIdentity(
                suite="toy@1",
                cell_id=f"v1-{algorithm}",
                algorithm=algorithm,
                task="toy",
                task_version="1",
                policy="flow",
                anchor_base=0.0,
                anchor_reference=10.0,
                budget=400,
            )
            tracker = start_seed(store, identity, seed=seed, config={})
            for step in (0, 200, 300, 400):
                tracker.log({"eval/score": final}, step)
            tracker.finish("finished")


def test_answers_of_an_evaluation_are_a_table_of_its_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ToyTask.evaluate

    def in_words(task: ToyTask, policy: Policy, noise: Noise) -> Evaluation:
        answers = [Answer(inputs={"prompt": i}, outputs={"completion": "arm"}, judged={}) for i in range(4)]
        return replace(evaluate(task, policy, noise), answers=answers)

    monkeypatch.setattr(ToyTask, "evaluate", in_words)
    out = ["--out", str(tmp_path / "out"), "--track", "--results", str(store.lock_path.parent)]
    for _ in range(2):
        code, output = run("eval", "ppo", "toy", "trainer.answer_rows=2", *out)
        assert code == 0, output
    assert json.loads((tmp_path / "out" / "answers.json").read_text())["data"] == [[0, 0, "arm"], [0, 2, "arm"]]
    experiment = ensure_experiment(store, "eval@1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.client.tracking_uri)
    judged = [kept.info.run_id for kept in search_runs(store, experiment, {"kind": "evaluation"})]
    assert store.client.load_table(experiment, "answers.json", run_ids=judged[:1])["prompt"].tolist() == [0, 2]


def test_a_board_is_checked_against_a_released_one(store: Store, tmp_path: Path) -> None:
    fill(store, ppo=[8.0, 8.2, 8.4], fpo=[5.0, 5.2, 5.4])
    board = ["leaderboard", "toy@1", "--results", str(store.lock_path.parent)]
    code, _ = run(*board, "--out", str(tmp_path / "release"))
    assert code == 0
    code, output = run(*board, "--against", str(tmp_path / "release"))
    assert (code, "2 cells: 2 not shown to differ" in output) == (0, True), output
    worse = tmp_path / "worse" / "mlflow.db"
    fill(open_store(results=worse.parent), ppo=[8.0, 8.2, 8.4], fpo=[1.0, 1.2, 1.4])
    code, output = run("leaderboard", "toy@1", "--results", str(worse.parent), "--against", str(tmp_path / "release"))
    assert (code, "2 cells: 1 not shown to differ, 1 worse" in output) == (1, True), output
    assert [line.split()[-1] for line in output.splitlines() if line.strip().startswith("fpo on toy")] == ["worse"]
    manifest = tmp_path / "release" / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("toy@1", "other@1"))
    code, output = run(*board, "--against", str(tmp_path / "release"))
    assert (code, "expected a release of the suite of toy@1, found one of other@1" in output) == (2, True), output
    code, output = run(*board, "--against", str(tmp_path / "none"))
    assert (code, "expected a released board with MANIFEST.json and seeds.csv" in output) == (2, True)


def test_two_algorithms_are_compared_task_by_task(store: Store) -> None:
    fill(store, ppo=[8.0, 8.2, 8.4], fpo=[5.0, 5.2, 5.4])
    board = ["leaderboard", "toy@1", "--results", str(store.lock_path.parent)]
    code, output = run(*board, "--compare", "fpo", "ppo")
    assert code == 0, output
    (row,) = [line.split() for line in output.splitlines() if line.strip().startswith("toy ")][-1:]
    assert row[:6] == ["toy", "0.520", "0.820", "3,", "3", "0.300"]
    assert row[-1] == "better"
    assert "over all tasks: ppo is better by 0.300 of M, a run of it wins with P = 1.00" in output
    code, output = run(*board, "--compare", "fpo", "fpo")
    assert (code, "--compare: expected two different algorithms, found 'fpo' twice" in output) == (2, True)
    code, output = run(*board, "--compare", "fpo", "pppo")
    assert (code, "no algorithm 'pppo' on toy@1, which has ['ppo', 'fpo']; did you mean ppo" in output) == (2, True)


def test_settings_of_the_suite_are_applied_and_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.lock_path.parent / "toys.yaml"
    path.write_text(SUITE + "overrides: {ppo: {toy: {update.lr: 0.002}}}\n")
    results = str(store.lock_path.parent)
    code, output = run("train", "ppo", "toy", "--suite", str(path), "trainer.num_evaluations=3", "--results", results)
    assert code == 0, output
    assert "suite toys@1-quick: " in output
    assert "update.lr=0.002" in output
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})
    kept = {key: seed.data.params[key] for key in ("update.lr", "trainer.budget", "trainer.num_evaluations")}
    assert kept == {"update.lr": "0.002", "trainer.budget": "96", "trainer.num_evaluations": "3"}


@pytest.mark.parametrize("target", [["absent.ckpt"], ["readme.md"], ["."], ["broken.ckpt"], ["ppo", "toy", "extra"]])
def test_what_is_not_a_checkpoint_is_refused(
    target: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.ckpt").write_text("not a checkpoint")
    code, output = run("sample", *target)
    assert code == 2, output
    assert "error: expected" in output


def test_a_board_of_nothing_is_refused_and_makes_no_database(tmp_path: Path) -> None:
    code, output = run("leaderboard", "core", "--results", str(tmp_path / "results"))
    assert (code, "expected a tracking database at" in output) == (2, True)
    assert not (tmp_path / "results").exists()


def test_list_shows_what_runs_with_what() -> None:
    code, output = run("list")
    assert code == 0
    for name in ("flow_grpo", "image/shapes", "control/halfcheetah", "reasoning/countdown", "causal_lm", "core"):
        assert name in output
    (row,) = [line for line in output.splitlines() if line.startswith("image/shapes |")]
    assert row.split()[-5:] == ["yes"] * 5


def test_pretrain_makes_a_base_where_the_task_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run("pretrain", "toy", "--out", str(tmp_path / "base"))
    assert (code, "starts from random weights" in output) == (2, True)
    assert not (tmp_path / "base").exists()

    def pretrain(cls: type[ToyTask], out: Path, seed: int) -> dict[str, float]:
        (out / "base.txt").write_text(str(seed))
        return {"score": 0.5}

    monkeypatch.setattr(ToyTask, "pretrain", classmethod(pretrain), raising=False)
    code, output = run("pretrain", "toy", "--out", str(tmp_path / "base"), "--seed", "3")
    assert (code, (tmp_path / "base" / "base.txt").read_text()) == (0, "3")
    assert output.split()[:2] == ["score", "0.5"]


def test_doctor_names_device_and_remedies_and_fails_on_what_is_broken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlflow.doctor._renders", lambda backend: False)
    monkeypatch.setattr("rlflow.doctor.EXTRAS", {"no_such_extra": "pip install no-such-extra"})
    code, output = run("doctor", "--results", str(store.lock_path.parent))
    assert code == 0, output
    assert "missing  no_such_extra" in output
    assert "pip install no-such-extra" in output
    assert "apt-get install libegl1" in output
    assert f"sqlite:///{store.lock_path.parent}/mlflow.db answers" in output
    code, output = run("doctor", "--tracking-uri", "http://127.0.0.1:9")
    assert (code, "broken   tracking" in output) == (1, True)
