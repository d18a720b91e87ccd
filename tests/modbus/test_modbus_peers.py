"""The driver against other people's Modbus: libmodbus in C, pymodbus, modbus-serial on Node, over TCP, TLS and RTU."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from lines import certificate, serial_line
from modbus_field import Sample, driver_of, plant_of, point, read_until, source
from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusTlsServer
from pymodbus.simulator import DataType, SimData, SimDevice

from core import quality
from core.errors import DeviceUnreachable
from core.plant.model import Order, Plant, Protocol

HERE = Path(__file__).parent
NODE_MODULES = HERE.parents[0] / "peers" / "node_modules"
LITTLE = Order.LITTLE

POINTS = [
    point("u16", source(0)),
    point("i16", source(1, "int16")),
    point("u32", source(2, "uint32")),
    point("u32-cdab", source(4, "uint32", word_order=LITTLE)),
    point("f32", source(6, "float32")),
    point("f32-badc", source(8, "float32", byte_order=LITTLE)),
    point("f32-dcba", source(10, "float32", byte_order=LITTLE, word_order=LITTLE)),
    point("f64", source(12, "float64")),
    point("i64", source(16, "int64")),
    point("bcd", source(20, "bcd12", scale=0.0001)),
    point("far", source(300, "uint32", scale=0.001)),
    point("input", source(2, "int32", function=4)),
    point("coil", source(1, "bit", function=1)),
    point("switch", source(2, "bit", function=2)),
]
WIRE = (
    struct.pack(">Hh", 60_000, -5)
    + struct.pack(">I", 3_000_000_001)
    + struct.pack(">HH", 3_000_000_001 & 0xFFFF, 3_000_000_001 >> 16)
    + struct.pack(">f", 231.5)
    + b"".join(struct.pack(">f", -12.25)[i : i + 2][::-1] for i in (0, 2))
    + struct.pack("<f", 1e6)
    + struct.pack(">d", 98765.4321)
    + struct.pack(">q", -(2**40) - 7)
    + bytes.fromhex("122856864222")
)
WORDS = dict(enumerate(struct.unpack(f">{len(WIRE) // 2}H", WIRE))) | {300: 0x0001, 301: 0xE240}
EXPECTED = {
    "u16": 60_000,
    "i16": -5,
    "u32": 3_000_000_001,
    "u32-cdab": 3_000_000_001,
    "f32": 231.5,
    "f32-badc": -12.25,
    "f32-dcba": 1e6,
    "f64": 98765.4321,
    "i64": -(2**40) - 7,
    "bcd": 12285686.4222,
    "far": 123.456,
    "input": 3_000_000_001 - 2**32,
    "coil": 1,
    "switch": WORDS[2] & 1,
}


async def all_values(plant: Plant) -> dict[str, float]:
    """One good value of each point."""

    def good(seen: list[Sample]) -> dict[str, float]:
        return {name: value for name, _, value, status in seen if status == quality.GOOD}

    async with driver_of(plant) as driver:
        return good(await read_until(driver, lambda seen: len(good(seen)) == len(plant.points)))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C peer, built here."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the libmodbus peer")
    target = tmp_path_factory.mktemp("peers") / "libmodbus_server"
    subprocess.run(["cc", "-O2", "-o", target, HERE / "libmodbus_server.c", "-lmodbus"], check=True)
    return target


@pytest.fixture
def libmodbus(compiled: Path) -> Iterator[int]:
    text = "".join(f"{address} {word}\n" for address, word in WORDS.items())
    with subprocess.Popen([compiled], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(text)
        peer.stdin.close()
        yield int(peer.stdout.readline())
        peer.kill()


async def test_libmodbus_gives_the_same_values_through_both_clients(libmodbus: int, client: str) -> None:
    values = await all_values(plant_of({"m": POINTS}, libmodbus, client=client))

    assert values == pytest.approx(EXPECTED)


def test_the_same_values_come_under_uvloop(libmodbus: int, client: str) -> None:
    values = uvloop.run(all_values(plant_of({"m": POINTS}, libmodbus, client=client)))

    assert values == pytest.approx(EXPECTED)


def test_mbpoll_agrees_about_the_numbers(libmodbus: int) -> None:
    if shutil.which("mbpoll") is None:
        pytest.skip("no mbpoll")

    shown = subprocess.run(
        [
            "mbpoll",
            "-0",
            "-1",
            "-a",
            "1",
            "-p",
            str(libmodbus),
            "-t",
            "4:float",
            "-B",
            "-r",
            "6",
            "127.0.0.1",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f"{EXPECTED['f32']:g}" in shown


NODE_SERVER = """
const { ServerTCP } = require('modbus-serial');
const words = new Map(Object.entries(JSON.parse(process.argv[1])).map(([k, v]) => [Number(k), v]));
const word = (address) => words.get(address) || 0;
const bit = (address) => (word(address) & 1) === 1;
const probe = require('net').createServer().listen(0, '127.0.0.1', () => {
  const port = probe.address().port;
  probe.close(() => {
    const server = new ServerTCP(
      { getHoldingRegister: word, getInputRegister: word, getCoil: bit, getDiscreteInput: bit },
      { host: '127.0.0.1', port, unitID: 255 });
    server.on('initialized', () => console.log(port));
  });
});
"""


JSMODBUS_SERVER = """
const modbus = require('jsmodbus');
const net = require('net');
const registers = Buffer.alloc(2048), bits = Buffer.alloc(128);
for (const [address, word] of Object.entries(JSON.parse(process.argv[1]))) {
  registers.writeUInt16BE(word, 2 * Number(address));
  if (word & 1) bits[Number(address) >> 3] |= 1 << (Number(address) & 7);
}
const server = new net.Server();
new modbus.server.TCP(server, { holding: registers, input: registers, coils: bits, discrete: bits });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


@pytest.mark.parametrize(
    ("package", "program"), [("modbus-serial", NODE_SERVER), ("jsmodbus", JSMODBUS_SERVER)]
)
async def test_two_stacks_on_node_give_the_same_values(client: str, package: str, program: str) -> None:
    if shutil.which("node") is None or not (NODE_MODULES / package).is_dir():
        pytest.skip("no Node peer; tests/peers/install.sh brings it")
    peer = await asyncio.create_subprocess_exec(
        "node", "-e", program, json.dumps(WORDS), cwd=NODE_MODULES, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert peer.stdout is not None
        port = int(await peer.stdout.readline())
        values = await all_values(plant_of({"m": POINTS}, port, client=client, timeout_s=1.0))
    finally:
        peer.kill()
        await peer.wait()

    assert values == pytest.approx(EXPECTED)


def simulated() -> SimDevice:
    """The same registers as a pymodbus device; bits are the lowest bits of the words there too."""
    words = [WORDS.get(address, 0) for address in range(302)]
    bits = [bool(word & 1) for word in words]
    return SimDevice(
        1,
        simdata=(
            [SimData(0, values=bits, datatype=DataType.BITS)],
            [SimData(0, values=bits, datatype=DataType.BITS)],
            [SimData(0, values=words, datatype=DataType.REGISTERS)],
            [SimData(0, values=words, datatype=DataType.REGISTERS)],
        ),
    )


@asynccontextmanager
async def serving(server: ModbusTcpServer) -> AsyncIterator[int]:
    await server.serve_forever(background=True)
    try:
        yield server.transport.sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def test_pymodbus_gives_the_same_values_through_both_clients(client: str) -> None:
    async with serving(ModbusTcpServer(simulated(), address=("127.0.0.1", 0))) as port:
        values = await all_values(plant_of({"m": POINTS}, port, client=client))

    assert values == pytest.approx(EXPECTED)


async def test_rtu_frames_over_tcp_give_the_same_values() -> None:
    server = ModbusTcpServer(simulated(), framer=FramerType.RTU, address=("127.0.0.1", 0))
    async with serving(server) as port:
        values = await all_values(plant_of({"m": POINTS}, port, protocol=Protocol.MODBUS_RTU_TCP))

    assert values == pytest.approx(EXPECTED)


async def test_tls_reads_from_a_trusted_device_and_from_no_other(tmp_path: Path) -> None:
    certificate_file, key_file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    server = ModbusTlsServer(simulated(), address=("127.0.0.1", 0), sslctx=context)
    async with serving(server) as port:
        trusted = plant_of(
            {"m": POINTS},
            port,
            protocol=Protocol.MODBUS_TLS,
            ca_file=str(certificate_file),
            server_name="localhost",
            timeout_s=1.0,
        )
        untrusted = plant_of({"m": POINTS}, port, protocol=Protocol.MODBUS_TLS, server_name="localhost")

        values = await all_values(trusted)
        with pytest.raises(DeviceUnreachable, match="certificate"):
            async with driver_of(untrusted):
                pass

    assert values == pytest.approx(EXPECTED)


async def test_a_serial_line_gives_the_same_values() -> None:
    async with serial_line() as (ours, theirs):
        server = ModbusSerialServer(simulated(), port=theirs, baudrate=115200)
        await server.serve_forever(background=True)
        plant = plant_of(
            {"m": POINTS}, 0, protocol=Protocol.MODBUS_RTU, port=ours, baud=115200, timeout_s=1.0
        )

        values = await all_values(plant)

        await server.shutdown()

    assert values == pytest.approx(EXPECTED)


async def test_an_adapter_pulled_and_plugged_in_again_is_read_on(tmp_path: Path) -> None:
    """The port keeps its name (`/dev/serial/by-id/…`), the device behind it is another one afterwards."""
    port = tmp_path / "tty-meters"
    plant = plant_of(
        {"m": POINTS}, 0, protocol=Protocol.MODBUS_RTU, port=str(port), baud=115200, timeout_s=0.3, retries=0
    )
    driver = driver_of(plant)

    async with serial_line() as (ours, theirs):
        port.symlink_to(ours)
        server = ModbusSerialServer(simulated(), port=theirs, baudrate=115200)
        await server.serve_forever(background=True)
        async with driver:
            await read_until(driver, lambda seen: len(seen) >= len(POINTS))
            await server.shutdown()
            port.unlink()
            pulled = asyncio.create_task(read_until(driver, lambda seen: False))
            await asyncio.sleep(0.05)
    with pytest.raises(DeviceUnreachable):
        await pulled
    with pytest.raises(DeviceUnreachable, match="tty-meters: no connection"):
        async with driver:
            pass
    async with serial_line() as (ours, theirs):
        port.symlink_to(ours)
        server = ModbusSerialServer(simulated(), port=theirs, baudrate=115200)
        await server.serve_forever(background=True)
        async with driver:
            again = await read_until(driver, lambda seen: len(seen) >= len(POINTS))
        await server.shutdown()

    assert {name: value for name, _, value, _ in again} == pytest.approx(EXPECTED)
