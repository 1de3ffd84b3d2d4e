"""Rank 0's endpoint, read from a real server that behaves well or badly."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import RowCounts
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict
from rlhf_operator.scrape import MAX_BYTES, ScrapeError, scrape

TEXT = """# TYPE rlhf_train_step gauge
rlhf_train_step{rlhfjob="a",stage="sft"} 7
rlhf_train_total_steps{rlhfjob="a",stage="sft"} 20
rlhf_train_loss{rlhfjob="a",stage="sft"} 0.5
rlhf_train_kl{rlhfjob="a",stage="sft"} NaN
rlhf_train_last_checkpoint_step{rlhfjob="a",stage="sft"} 5
rlhf_train_unknown{rlhfjob="a"} 1
other_step 99
"""


def asked(answer: web.Response) -> ObservedProgress:
    """What is read from a server that gives this answer."""

    async def run() -> ObservedProgress:
        async def metrics(_: web.Request) -> web.Response:
            return answer

        app = web.Application()
        app.add_routes([web.get("/metrics", metrics)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with aiohttp.ClientSession() as session:
                return await scrape(session, "127.0.0.1", runner.addresses[0][1])
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_the_fixed_family_is_read_and_nothing_else() -> None:
    found = asked(web.Response(text=TEXT))
    assert (found.step, found.total_steps, found.last_checkpoint_step) == (7, 20, 5)
    assert found.metrics["loss"] == 0.5
    assert "kl" not in found.metrics
    assert "unknown" not in found.metrics


HEALTH = """rlhf_train_health_verdict{stage="ppo",rule="KLAboveLimit"} 1
rlhf_train_health_value{stage="ppo",rule="KLAboveLimit"} 12.5
rlhf_train_health_threshold{stage="ppo",rule="KLAboveLimit"} 10
rlhf_train_health_verdict{stage="ppo",rule="NonFinite"} 0
rlhf_train_health_value{stage="ppo",rule="NonFinite"} NaN
rlhf_train_health_value{stage="ppo",rule="NegativeKL"} -1
rlhf_train_health_verdict{stage="ppo",rule="EOSRateLow"} NaN
rlhf_train_health_verdict{stage="ppo",rule="NewerRule"} 1
rlhf_train_health_verdict{stage="ppo"} 1
"""


def test_verdicts_are_read_by_rule_and_rules_that_are_not_known_left_out() -> None:
    assert asked(web.Response(text=HEALTH)).verdicts == {
        GuardrailRule.KL_ABOVE_LIMIT: ObservedVerdict(broken=True, value=12.5, threshold=10.0),
        GuardrailRule.NON_FINITE: ObservedVerdict(broken=False),
    }
    assert asked(web.Response(text=TEXT)).verdicts == {}


ROWS = """rlhf_train_rows_kept{stage="sft",dataset="dataset"} 88
rlhf_train_rows_over_long{stage="sft",dataset="dataset"} 9
rlhf_train_rows_identical{stage="sft",dataset="dataset"} 3
rlhf_train_rows_empty_list{stage="sft",dataset="dataset"} 1e30
rlhf_train_rows_not_learned{stage="sft",dataset="dataset"} 4
rlhf_train_rows_encoded_apart{stage="sft",dataset="dataset"} 7
rlhf_train_rows_truncated{stage="sft",dataset="dataset"} NaN
rlhf_train_rows_over_long{stage="sft",dataset="evalDataset"} 9
rlhf_train_rows_kept{stage="sft",dataset="another"} 1
rlhf_train_rows_kept{stage="sft"} 1
"""


def test_rows_are_read_by_dataset_and_bounded() -> None:
    assert asked(web.Response(text=ROWS)).rows == {
        "dataset": RowCounts(
            kept=88,
            encoded_apart=7,
            over_long=9,
            identical=3,
            empty_list=2_147_483_647,
            not_learned=4,
        )
    }
    assert asked(web.Response(text=TEXT)).rows == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (web.Response(status=500), "answered 500"),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "answered 302"),
        (web.Response(text="x" * (MAX_BYTES + 10)), f"{MAX_BYTES + 1} bytes"),
        (web.Response(text="no metrics {"), "/metrics"),
        (
            web.Response(text='rlhf_train_step{a="' + "x" * 5000 + '"} 1'),
            "more than 4096 characters",
        ),
        (web.Response(body=b"\\xff\\xfe"), "/metrics"),
        (web.Response(text="# TYPE \u2028\t="), "/metrics"),
    ],
)
def test_a_bad_answer_is_an_error_with_the_address(answer: web.Response, said: str) -> None:
    with pytest.raises(ScrapeError) as caught:
        asked(answer)
    assert "http://127.0.0.1:" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(("told", "step"), [("3e9", 2_147_483_647), ("-1", 0), ("7.9", 7)])
def test_a_step_is_kept_within_what_status_can_hold(told: str, step: int) -> None:
    text = f"rlhf_train_step {told}\nrlhf_train_last_checkpoint_step {told}\n"
    found = asked(web.Response(text=text))
    assert (found.step, found.last_checkpoint_step) == (step, step)


@pytest.mark.parametrize(
    ("name", "told", "kept"),
    [
        ("step", "3e9", 2_147_483_647),
        ("progress_ratio", "7", 1),
        ("progress_ratio", "-1", 0),
        ("nonfinite_total", "-1", None),
        ("eta_seconds", "-5", None),
        ("last_checkpoint_timestamp_seconds", "-5", None),
        ("last_checkpoint_timestamp_seconds", "1.7e9", 1.7e9),
        ("kl", "-0.5", -0.5),
        ("loss", "+Inf", None),
    ],
)
def test_a_metric_is_kept_within_what_it_can_be(name: str, told: str, kept: float | None) -> None:
    found = asked(web.Response(text=f"rlhf_train_{name} {told}\n"))
    assert found.metrics.get(name) == kept
    assert found.eta_seconds is None
