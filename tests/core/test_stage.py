"""A stage runs once, accounts for every row, and mends what was damaged."""

import threading
import time

import polars as pl
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from core.claims import Claim, Claims, open_database
from core.errors import AccountingError, ClaimLost, EmptyOutput, InputError
from core.manifest import Ref, read_manifest, read_table, stage_key, to_parquet
from core.settings import Settings
from core.stage import Output, Stage, check_some_rows, run_stage
from core.store import LocalStore
from data_contracts import Rejects, Samples
from tests.clock import Clock, eventually


class Config(Settings):
    rows: int = 3


def samples(n: int) -> pl.DataFrame:
    rows = [
        {"sample_id": f"s{i}", "image_sha": None, "prompt": "?", "reference": "a", "split": "train", "source": "t"}
        for i in range(n)
    ]
    return pl.DataFrame(rows).with_columns(grounding=None).cast(dict(Samples.create_empty().schema))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def claims(tmp_path):
    return Claims(open_database(f"sqlite:///{tmp_path}/state.db"), ttl_s=2.0)


@pytest.fixture
def runner(store, claims, tmp_path):
    calls: list[str] = []

    def run(stage: Stage, compute=None, **kwargs):
        def default(output: Output) -> None:
            output.write(Samples, samples(stage.config.rows))
            output.commit(rows_in=stage.config.rows)

        def counted(output: Output) -> None:
            calls.append(stage.name)
            (compute or default)(output)

        return run_stage(store, claims, stage, counted, work_root=tmp_path / "work", **kwargs)

    run.calls = calls
    return run


STAGE = Stage(name="synth", version=1, config=Config())


def test_some_columns_of_a_table_can_be_read_alone(runner, store):
    ref = runner(STAGE).ref
    columns = ["reference", "sample_id"]
    whole = read_table(store, ref, Samples)
    assert read_table(store, ref, Samples, columns=columns).equals(whole.select(columns))
    assert read_table(store, [], Samples, columns=columns).schema == whole.select(columns).schema


def test_a_stage_is_computed_once(runner, store):
    first, second = runner(STAGE), runner(STAGE)
    assert (first.cached, second.cached) == (False, True)
    assert runner.calls == ["synth"]
    assert first.ref == second.ref
    assert read_table(store, first.ref, Samples).height == 3


@pytest.mark.parametrize(
    "other",
    [
        Stage(name="synth2", version=1, config=Config()),
        Stage(name="synth", version=2, config=Config()),
        Stage(name="synth", version=1, config=Config(rows=4)),
        Stage(name="synth", version=1, config=Config(), inputs={"a": [Ref(uri="x", digest="d", kind="dataset")]}),
    ],
)
def test_name_version_config_and_inputs_all_change_the_key(other):
    assert other.key != STAGE.key


def test_the_key_depends_on_the_digest_of_an_input_and_not_on_its_place():
    here, there = (Ref(uri=uri, digest="d", kind="dataset") for uri in ("here", "there"))
    assert stage_key("s", 1, {}, {"a": [here]}) == stage_key("s", 1, {}, {"a": [there]})


def test_a_damaged_part_is_moved_aside_and_computed_again(runner, store):
    ref = runner(STAGE).ref
    part = store.root / ref.uri / "samples-00000.parquet"
    part.write_bytes(part.read_bytes()[:-7])
    again = runner(STAGE)
    assert not again.cached
    assert again.ref == ref
    assert len(store.list("damaged")) == 2  # the truncated part and its manifest


def test_a_run_that_died_before_its_manifest_leaves_nothing_behind(runner, store):
    def dies(output: Output) -> None:
        output.write(Samples, samples(5), part="99999")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        runner(STAGE, dies)
    assert read_table(store, runner(STAGE).ref, Samples).height == 3


def test_a_lost_row_fails_the_stage(runner):
    def loses(output: Output) -> None:
        output.write(Samples, samples(2))
        output.commit(rows_in=3)

    with pytest.raises(AccountingError, match="lost rows"):
        runner(STAGE, loses)


def test_an_empty_output_fails_the_stage_and_says_why(runner):
    def nothing(output: Output) -> None:
        output.reject("s0", "too_long")
        output.commit(rows_in=1)

    with pytest.raises(EmptyOutput, match="too_long"):
        runner(STAGE, nothing)


def test_a_shard_may_be_empty_and_all_shards_may_not(runner, store):
    def nothing(output: Output) -> None:
        output.write(Samples, Samples.create_empty())
        output.reject("s0", "too_long", "900 tokens")
        output.commit(rows_in=1, is_shard=True)

    empty, full = runner(STAGE, nothing).ref, runner(Stage(name="synth", version=1, config=Config(rows=2))).ref
    check_some_rows(store, [empty, full], "shards")
    assert read_table(store, [empty, full], Samples).height == 2

    def failing(output: Output) -> None:
        output.reject("s0", "timeout", failed=True)
        output.commit(rows_in=1, is_shard=True)

    with pytest.raises(EmptyOutput, match="timeout"):
        runner(Stage(name="synth", version=1, config=Config(rows=1)), failing)
    with pytest.raises(
        EmptyOutput, match=r"none of the shards has a good row: rejected {'too_long': 2}.*one of them: 900 tokens"
    ):
        check_some_rows(store, [empty, empty], "shards")


def test_rows_that_break_the_contract_are_counted_rejects(runner, store):
    def breaks(output: Output) -> None:
        frame = samples(3).with_columns(prompt=pl.Series(["?", "", "?"]))
        output.write(Samples, frame)
        output.reject("s9", "bad_image", "x" * 900, failed=True)
        output.commit(rows_in=4)

    result = runner(STAGE, breaks)
    counts = read_manifest(store, result.ref.uri).counts
    assert (counts.ok, counts.rejected, counts.failed) == (2, {"contract:prompt|min_length": 1}, {"bad_image": 1})
    rejects = read_table(store, result.ref, Rejects)
    assert rejects["row_id"].to_list() == ["s1", "s9"]
    assert rejects["detail"].str.len_chars().max() == 500


def test_a_table_of_another_version_is_refused(store, runner):
    ref = runner(STAGE).ref

    class Newer(Samples):
        version = 2

    with pytest.raises(InputError, match="expected"):
        read_table(store, ref, Newer)


def test_equal_rows_give_equal_bytes():
    assert to_parquet(Samples, samples(4)) == to_parquet(Samples, samples(4))


def test_two_runs_of_the_same_work_compute_it_once(store, tmp_path):
    calls = []

    def work() -> None:
        claims = Claims(open_database(f"sqlite:///{tmp_path}/state.db"), ttl_s=60.0)

        def compute(output: Output) -> None:
            calls.append(1)
            time.sleep(0.7)
            output.write(Samples, samples(3))
            output.commit(rows_in=3)

        run_stage(store, claims, STAGE, compute, work_root=tmp_path / "work")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.fixture
def clock(monkeypatch):
    """The clock of claims."""
    clock = Clock()
    monkeypatch.setattr("core.claims.time", clock)
    return clock


def prolonged(engine, clock, ttl_s) -> bool:
    """Whether the claim "work" was prolonged since the clock stands where it does."""
    with engine.connect() as connection:
        return connection.execute(select(Claim.expires).where(Claim.key == "work")).scalar() == clock.now + ttl_s


def test_a_claim_of_a_dead_owner_expires_and_a_living_one_does_not(tmp_path, clock):
    engine = open_database(f"sqlite:///{tmp_path}/state.db")
    dead, alive = Claims(engine, ttl_s=0.4), Claims(engine, ttl_s=0.4)
    assert dead.take("work")
    assert not alive.take("work")
    clock.now += 0.3
    assert not alive.take("work")
    clock.now += 0.3
    assert alive.take("work")
    assert not dead.beat("work")
    alive.release("work")
    with Claims(engine, ttl_s=0.4).hold("work"):
        for _ in range(3):  # longer than the time to live: the heartbeat keeps it
            clock.now += 0.3
            eventually(lambda: prolonged(engine, clock, 0.4))
            assert not alive.take("work")
    assert alive.take("work")


@pytest.mark.parametrize("damage", [b"", b'{"kind": "data'])
def test_a_damaged_manifest_is_moved_aside_and_computed_again(runner, store, damage):
    ref = runner(STAGE).ref
    store.write(f"{ref.uri}/manifest.json", damage)
    assert runner(STAGE).ref == ref
    assert runner.calls == ["synth", "synth"]
    assert store.list("damaged")


def test_failed_rows_are_tried_again_only_when_that_is_asked_for(runner):
    well = False

    def compute(output: Output) -> None:
        output.write(Samples, samples(3 if well else 2))
        if not well:
            output.reject("s2", "http_500", failed=True)
        output.commit(rows_in=3)

    first = runner(STAGE, compute)
    well = True
    assert runner(STAGE, compute).ref == first.ref
    again = runner(STAGE, compute, retry_failed=True)
    assert not again.cached
    assert again.manifest.counts.failed == {}
    assert runner(STAGE, compute, retry_failed=True).cached


def test_a_stage_that_lost_its_claim_writes_no_manifest(store, claims, tmp_path):
    other = Claims(open_database(f"sqlite:///{tmp_path}/state.db"))

    def compute(output: Output) -> None:
        output.write(Samples, samples(3))
        with claims._engine.begin() as connection:  # the database was away, and the claim expired meanwhile
            connection.exec_driver_sql("UPDATE claims SET expires = 0")
        assert other.take(f"stage:{STAGE.key}")
        output.commit(rows_in=3)

    with pytest.raises(ClaimLost):
        run_stage(store, claims, STAGE, compute, work_root=tmp_path / "work")
    assert not store.exists(f"{STAGE.folder}/manifest.json")


def test_the_heartbeat_survives_a_database_that_is_away_for_a_moment(tmp_path, monkeypatch, clock):
    claims = Claims(open_database(f"sqlite:///{tmp_path}/state.db"), ttl_s=0.8)
    original, failures = Claims.beat, iter([True])

    def beat(self: Claims, key: str) -> bool:
        if next(failures, False):
            raise OperationalError("UPDATE claims", {}, Exception("database is locked"))
        return original(self, key)

    monkeypatch.setattr(Claims, "beat", beat)
    with claims.hold("work") as held:
        clock.now += 0.7
        eventually(lambda: prolonged(claims._engine, clock, 0.8))
        clock.now += 0.7
        assert not Claims(claims._engine).take("work")
        assert held()
