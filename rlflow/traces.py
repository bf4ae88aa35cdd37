"""Answers as MLflow traces: one span each, with what was asked, what was made and what was said of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlflow.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

NAME = "answer"
# The whole is in the span; MLflow's lists show this much.
MAX_PREVIEW = 1000
MAX_TAG = 250


def send_traces(store: Store, run_id: str, traces: Sequence[Mapping[str, Any]]) -> None:
    """Write traces of a run; one that is there is replaced, since ids are not MLflow's own random ones.

    Args:
        store: An opened store.
        run_id: The run that the traces show as their source.
        traces: As `rlflow.answers.as_traces` gives them.
    """
    from mlflow.tracing.client import TracingClient

    client = TracingClient(store.client.tracking_uri)
    experiment = str(store.client.get_run(run_id).info.experiment_id)
    for trace in traces:
        client.start_trace(_info(trace, run_id, experiment))
    client.log_spans(experiment, [_span(trace) for trace in traces])


def _info(trace: Mapping[str, Any], run_id: str, experiment: str) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

    return TraceInfo(
        trace_id=_id(trace),
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=trace["time_ms"],
        execution_duration=0,
        state=TraceState.OK,
        request_preview=_json(trace["inputs"])[:MAX_PREVIEW],
        response_preview=_json(trace["outputs"])[:MAX_PREVIEW],
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run_id, "rlflow.step": str(trace["step"])},
        tags={TraceTagKey.TRACE_NAME: NAME, **{f"rlflow.{k}": str(v)[:MAX_TAG] for k, v in trace["judged"].items()}},
    )


def _span(trace: Mapping[str, Any]) -> Span:
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    attributes = {
        SpanAttributeKey.REQUEST_ID: _id(trace),
        SpanAttributeKey.SPAN_TYPE: SpanType.LLM,
        SpanAttributeKey.INPUTS: trace["inputs"],
        SpanAttributeKey.OUTPUTS: trace["outputs"],
        **trace["judged"],
    }
    time_ns = trace["time_ms"] * 1_000_000
    return Span.from_dict(
        {
            "name": NAME,
            "trace_id": _id(trace),
            "span_id": trace["id"][:16],
            "parent_span_id": None,
            "start_time_unix_nano": time_ns,
            "end_time_unix_nano": time_ns,
            "status": {"code": "OK"},
            "attributes": {name: _json(value) for name, value in attributes.items()},
        }
    )


def _id(trace: Mapping[str, Any]) -> str:
    return f"tr-{trace['id']}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
