"""A 32-bit energy register read over Modbus while it goes round: no kilowatt-hour too many or too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from modbus_field import FieldDevice, Request, driver_of, read_until

from core.energy.register import register_energy
from core.plant.load import load_plant

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
PLANT = """\
plant: wrap
name: {{zh: 回卷厂, en: Wrap}}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
connections:
  - {{id: mb, protocol: modbus-tcp, host: 127.0.0.1, port: {port}}}
devices:
  - {{id: m, connection: mb, unit_id: 1}}
network:
  nodes:
    - {{id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}}
    - {{id: hall, kind: load, carrier: electricity}}
  edges:
    - {{id: e-grid, from: grid, to: hall, meter: m.energy}}
"""
POINTS = """\
point,device,name,quantity,unit,address,function,type,word_order,scale,period_s
m.energy,m,,active_energy_import_total,kWh,0,3,uint32,{order},0.01,0.02
"""


@pytest.mark.parametrize("order", ["big", "little"])
async def test_energy_runs_on_over_the_wrap_of_a_register(
    device: FieldDevice, tmp_path: Path, order: str
) -> None:
    (tmp_path / "plant.yaml").write_text(PLANT.format(port=device.port), "utf-8")
    (tmp_path / "points.csv").write_text(POINTS.format(order=order), "utf-8")
    plant = load_plant(tmp_path, [PROFILES])
    point = plant.point_by_id["m.energy"]
    served = 0

    async def counting(request: Request) -> None:
        nonlocal served
        raw = (0xFFFF_FFC0 + 7 * served) % (1 << 32)  # wraps at the tenth answer
        served += 1
        high, low = raw >> 16, raw & 0xFFFF
        device.words = {0: high, 1: low} if order == "big" else {0: low, 1: high}
        request.send(device.pdu(request))

    device.answer = counting
    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 20)

    times = np.array([time_ns for _, time_ns, _, _ in samples], dtype=np.int64)
    register = np.array([value for _, _, value, _ in samples])
    energy = register_energy(
        times,
        register,
        np.array([status for *_, status in samples], dtype=np.int16),
        times[[0, -1]],
        gap_after_ns=10**12,
        modulus=point.counter_modulus,
        resolution=point.resolution,
        step_spread_ns=1,
    )
    assert (np.diff(register) < 0).sum() == 1
    assert energy.energy_kwh[0] == pytest.approx(0.07 * (len(samples) - 1), abs=1e-6)
