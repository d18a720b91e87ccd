"""What the edge nodes of a Sparkplug group say they have: the metrics of their births.

A birth is not kept by the broker, so each node that is heard, or that the plant
names, is asked for one, once; nothing else is published.
"""

from __future__ import annotations

import asyncio
import time

from collector.sparkplug import is_number, name_of, number_of, payload_of, rebirth_request
from collector.tools.browse import Offer, Said
from collector.tools.browse_mqtt import Heard, listening, where
from core.errors import DeviceUnreachable
from core.plant.model import Connection, MqttSource, Plant

_BIRTHS = ("NBIRTH", "DBIRTH")
_NO_POINT = ("bdSeq", "Node Control/", "Device Control/")


async def browse(plant: Plant, connection: Connection, seconds: float, said: Said) -> list[Offer]:
    """Every numeric metric born within `seconds`; see collector/tools/browse.py."""
    group = str(connection.options["group"])
    devices = {device.id for device in plant.devices if device.connection == connection.id}
    read = {
        (point.source.topic, point.source.json_path)
        for point in plant.points
        if point.device in devices and isinstance(point.source, MqttSource)
    }
    nodes = {topic.split("/")[0] for topic, _ in read}
    asked: set[str] = set()
    heard = Heard()
    client = await listening(plant, connection, heard, f"spBv1.0/{group}/#")
    try:
        for tenth in range(max(1, round(10 * seconds))):
            topics = [topic.split("/") for topic in heard.topics()]
            born = {levels[3] for levels in topics if levels[2] == "NBIRTH"}
            nodes |= {levels[3] for levels in topics if len(levels) > 3 and levels[2] != "NCMD"}
            said(f"{len(born)} of {len(nodes)} edge nodes", tenth / (10 * seconds))
            if heard.closed is not None:
                raise DeviceUnreachable(f"{where(connection)}: {heard.closed}")
            for node in nodes - born - asked:
                client.publish(f"spBv1.0/{group}/NCMD/{node}", rebirth_request(time.time_ns() // 1_000_000))
            asked |= nodes
            await asyncio.sleep(min(0.1, seconds))
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)
    offers: list[Offer] = []
    for topic, (message, _, retained) in sorted(heard.topics().items()):
        levels = topic.split("/")
        if levels[2] in _BIRTHS and not retained:
            offers += _born("/".join(levels[3:]), message, read)
    return offers


def _born(place: str, message: bytes, read: set[tuple[str, str]]) -> list[Offer]:
    try:
        payload = payload_of(message)
    except ValueError:
        return []
    offers = []
    for metric in payload.metrics:
        if metric.name and is_number(metric.datatype) and not metric.name.startswith(_NO_POINT):
            number, status = number_of(metric, metric.datatype)
            cells = {"topic": place, "json_path": metric.name}
            shows = "no value" if status < 0 else str(number)
            offers.append(Offer(cells, shows, name_of(metric.datatype), (place, metric.name) in read))
    return offers
