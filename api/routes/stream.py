"""The event stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.stream import Hub, StreamTopic

router = APIRouter(prefix="/v1", tags=["stream"])


@router.get("/stream", response_class=StreamingResponse)
async def stream(
    request: Request,
    topic: Annotated[list[StreamTopic], Query(description="All topics where none is given.")] = [],  # noqa: B006
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Server-Sent Events: `snapshot` first, then `latest`, `live` and `alerts`; id `<boot>-<seq>`."""
    hub = request.app.state.hub
    assert isinstance(hub, Hub)
    return StreamingResponse(
        hub.events(topic or list(StreamTopic), last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
