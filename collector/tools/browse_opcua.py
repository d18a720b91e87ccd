"""An OPC UA server's tree walked from its Objects folder: every variable that holds a number, as an offer.

Browses and reads, in calls as large as the server takes; the server's own
diagnostics are left out. Node ids are given by namespace URI, since the numbers
of namespaces change when a server restarts with others.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asyncua import ua

from collector.drivers.opcua_decode import resolved_node
from collector.drivers.opcua_session import Service, Session
from collector.payload import number_of
from collector.tools.browse import Offer, Said
from core import quality
from core.plant.model import Connection, OpcuaSource, Plant

MOST_OFFERS: Final = 10_000
MOST_NODES: Final = 200_000
_MOST_ELEMENTS: Final = 100
_SERVER: Final = ua.NodeId(ua.Int32(ua.ObjectIds.Server))
_OBJECTS: Final = ua.NodeId(ua.Int32(ua.ObjectIds.ObjectsFolder))
_PROPERTIES: Final = ("EngineeringUnits", "EURange")


@dataclass(slots=True)
class _Variable:
    node: ua.NodeId
    path: str
    shown_name: str
    properties: dict[str, ua.NodeId]


_Place = tuple[ua.NodeId, str, _Variable | None]  # the path that led there, and what it is


async def browse(plant: Plant, connection: Connection, seconds: float, said: Said) -> list[Offer]:
    """Every number of the server; stops after MOST_OFFERS. See collector/tools/browse.py.

    `seconds` means nothing here: a server can be asked, there is no need to listen.
    """
    session = Session(Path(plant.folder), connection)
    lost: list[str] = []
    try:
        async with asyncio.timeout(5 * session.timeout_s):
            await session.open(lost.append)
        variables = await _walk(session, said)
        return await _offers(session, variables, _read_already(plant, connection, session), said)
    except (OSError, TimeoutError, ua.UaError) as why:
        raise session.failure(why) from why
    finally:
        await session.close(dead=bool(lost))


async def _walk(session: Session, said: Said) -> list[_Variable]:
    """Breadth first, each node once, however often the tree leads back to it."""
    variables: list[_Variable] = []
    seen = {_OBJECTS, _SERVER}
    level: list[_Place] = [(_OBJECTS, "", None)]
    while level and len(seen) < MOST_NODES and len(variables) < MOST_OFFERS:
        below: list[_Place] = []

        async def look(part: list[_Place], below: list[_Place] = below) -> None:
            said(f"{len(seen)} nodes, {len(variables)} variables", min(0.8, len(variables) / MOST_OFFERS))
            found = await _children(session, [node for node, _, _ in part])
            for (_, path, owner), children in zip(part, found, strict=True):
                for child in children:
                    node, name = child.NodeId, str(child.BrowseName.Name)
                    is_variable = child.NodeClass == ua.NodeClass.Variable
                    if owner is not None and name in _PROPERTIES:
                        owner.properties[name] = node
                    if node in seen or _is_property(child):
                        continue
                    seen.add(node)
                    variable = None
                    if is_variable:
                        variable = _Variable(node, f"{path}/{name}", child.DisplayName.Text or name, {})
                        variables.append(variable)
                    if is_variable or child.NodeClass == ua.NodeClass.Object:
                        below.append((node, f"{path}/{name}", variable))

        await session.split(Service.BROWSE, level, look)
        level = below
    return variables


async def _children(session: Session, nodes: Sequence[ua.NodeId]) -> list[list[ua.ReferenceDescription]]:
    """What hangs below each node, over as many answers as the server makes of it."""
    view = ua.BrowseParameters(
        RequestedMaxReferencesPerNode=ua.UInt32(1000),
        NodesToBrowse=[
            ua.BrowseDescription(
                NodeId=node,
                BrowseDirection=ua.BrowseDirection.Forward,
                ReferenceTypeId=ua.NodeId(ua.Int32(ua.ObjectIds.HierarchicalReferences)),
                IncludeSubtypes=True,
                NodeClassMask=ua.UInt32(ua.NodeClass.Object | ua.NodeClass.Variable),
                ResultMask=ua.UInt32(ua.BrowseResultMask.All),
            )
            for node in nodes
        ],
    )
    results = await session.services.browse(view)
    children = [list(result.References or ()) for result in results]
    going_on = {i: result.ContinuationPoint for i, result in enumerate(results) if result.ContinuationPoint}
    while going_on:
        more = await session.services.browse_next(
            ua.BrowseNextParameters(
                ReleaseContinuationPoints=False, ContinuationPoints=list(going_on.values())
            )
        )
        for i, result in zip(list(going_on), more, strict=True):
            children[i] += result.References or ()
            if result.ContinuationPoint and result.References:  # some servers give the same point all the way
                going_on[i] = result.ContinuationPoint
            else:
                del going_on[i]
    for i, result in enumerate(results):
        if result.StatusCode.value == ua.StatusCodes.BadNoContinuationPoints and len(nodes) > 1:
            (children[i],) = await _children(session, [nodes[i]])  # too many at once for the server
    return children


async def _offers(
    session: Session, variables: Sequence[_Variable], used: set[tuple[ua.NodeId, int | None]], said: Said
) -> list[Offer]:
    values = await _values(session, [variable.node for variable in variables], said)
    about = await _values(
        session, [node for variable in variables for node in variable.properties.values()], said
    )
    told = iter(about)
    offers: list[Offer] = []
    for variable, answer in zip(variables, values, strict=True):
        properties = {name: next(told) for name in variable.properties}
        note = _note(variable, answer, properties)
        cells = {"node_id": _by_uri(variable.node, session.namespaces), "name": variable.shown_name}
        for element, shows in _numbers(answer):
            if len(offers) == MOST_OFFERS:
                return offers
            here = cells if element is None else {**cells, "element": str(element)}
            offers.append(Offer(here, shows, note, (variable.node, element) in used))
    return offers


async def _values(session: Session, nodes: Sequence[ua.NodeId], said: Said) -> list[ua.DataValue]:
    values: list[ua.DataValue] = []
    started_s = time.monotonic()

    async def read(part: list[ua.NodeId]) -> None:
        values.extend(await session.services.read_attributes(part, ua.AttributeIds.Value))
        said(
            f"{len(values)} values in {time.monotonic() - started_s:.0f} s",
            0.8 + 0.2 * len(values) / len(nodes),
        )

    await session.split(Service.READ, nodes, read)
    return values


def _numbers(answer: ua.DataValue) -> list[tuple[int | None, str]]:
    """(element, what it shows) of what the driver would make a number of; none where it is no number."""
    content = answer.Value.Value if answer.Value is not None else None
    if isinstance(content, list | tuple):
        return [(i, str(one)) for i, one in enumerate(content[:_MOST_ELEMENTS]) if _is_number(one)]
    if content is None:  # has a status instead of a value now; its type says what it will be
        number = answer.Value is not None and answer.Value.VariantType in _NUMERIC
        return [(None, _status(answer))] if number else []
    return [(None, str(content))] if _is_number(content) else []


def _is_number(content: Any) -> bool:
    return number_of(content)[1] == quality.GOOD or isinstance(content, float)


def _note(variable: _Variable, answer: ua.DataValue, properties: dict[str, ua.DataValue]) -> str:
    unit = _content(properties.get("EngineeringUnits"))
    span = _content(properties.get("EURange"))
    return ", ".join(
        filter(
            None,
            (
                variable.path.strip("/"),
                answer.Value.VariantType.name if answer.Value is not None else "",
                str(getattr(getattr(unit, "DisplayName", None), "Text", None) or ""),
                f"{span.Low:g} to {span.High:g}" if hasattr(span, "Low") and hasattr(span, "High") else "",
                "" if answer.StatusCode is None or answer.StatusCode.is_good() else _status(answer),
            ),
        )
    )


def _content(value: ua.DataValue | None) -> Any:
    return value.Value.Value if value is not None and value.Value is not None else None


def _status(answer: ua.DataValue) -> str:
    return str(answer.StatusCode.name) if answer.StatusCode is not None else ""


def _is_property(child: ua.ReferenceDescription) -> bool:
    return bool(child.ReferenceTypeId == ua.NodeId(ua.Int32(ua.ObjectIds.HasProperty)))


def _by_uri(node: ua.NodeId, namespaces: Sequence[str]) -> str:
    """`nsu=urn:x;s=y`; by number where the URI has a sign the form cannot hold."""
    text = str(node.to_string())
    if node.NamespaceIndex == 0 or node.NamespaceIndex >= len(namespaces):
        return text
    uri = namespaces[node.NamespaceIndex]
    return text if ";" in uri else re.sub(r"^ns=\d+;", f"nsu={uri};", text)


def _read_already(
    plant: Plant, connection: Connection, session: Session
) -> set[tuple[ua.NodeId | None, int | None]]:
    devices = {device.id for device in plant.devices if device.connection == connection.id}
    return {
        (resolved_node(point.source.node_id, session.namespaces), point.source.element)
        for point in plant.points
        if point.device in devices and isinstance(point.source, OpcuaSource)
    }


_NUMERIC: Final = frozenset(
    {
        ua.VariantType.Boolean,
        ua.VariantType.SByte,
        ua.VariantType.Byte,
        ua.VariantType.Int16,
        ua.VariantType.UInt16,
        ua.VariantType.Int32,
        ua.VariantType.UInt32,
        ua.VariantType.Int64,
        ua.VariantType.UInt64,
        ua.VariantType.Float,
        ua.VariantType.Double,
    }
)
