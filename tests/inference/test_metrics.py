"""Counts in Prometheus' text format."""

from mindspeed_llm.inference.metrics import Metrics


def test_everything_is_counted() -> None:
    metrics = Metrics()
    metrics.request("/health", 200)
    metrics.request("/health", 200)
    metrics.request("other", 404)
    metrics.reply(10, 4, 3)
    metrics.cancelled(2)
    metrics.first_token(0.2)
    metrics.first_token(99)
    lines = metrics.text({"replies": ("Now.", 5)}).splitlines()
    for line in (
        'mindspeed_llm_requests_total{path="/health",status="200"} 2',
        'mindspeed_llm_requests_total{path="other",status="404"} 1',
        'mindspeed_llm_tokens_total{kind="cached"} 4',
        "mindspeed_llm_cancelled_total 2",
        'mindspeed_llm_first_token_seconds_bucket{le="0.1"} 0',
        'mindspeed_llm_first_token_seconds_bucket{le="0.25"} 1',
        'mindspeed_llm_first_token_seconds_bucket{le="+Inf"} 2',
        "mindspeed_llm_first_token_seconds_count 2",
        "# TYPE mindspeed_llm_replies gauge",
        "mindspeed_llm_replies 5",
    ):
        assert line in lines
