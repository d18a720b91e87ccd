"""A real broker, mosquitto, on a free port."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from core.plant.model import Connection, Device, Kind, Label, MqttSource, Plant, Point, Protocol

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def make_certificate(certificate_file: Path, key_file: Path, name: str = "broker") -> None:
    """A self-signed certificate for 127.0.0.1, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_file.write_bytes(certificate.public_bytes(pem))
    key_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


class Broker:
    """mosquitto with its state on disk, so that it can be stopped and started again."""

    def __init__(self, folder: Path, tls: bool = False) -> None:
        self.port, self.tls_port, self.mutual_port = free_port(), free_port(), free_port()
        folder.chmod(0o777)
        self._folder = folder
        self._config = folder / "mosquitto.conf"
        passwords, access = folder / "passwords", folder / "access"
        passwords.write_text("reader:right\n")
        passwords.chmod(0o600)
        if MOSQUITTO is not None and (hasher := shutil.which("mosquitto_passwd")):
            subprocess.run([hasher, "-U", str(passwords)], check=True)
        access.write_text(
            "topic readwrite #\n\nuser reader\ntopic read plant/#\n\nuser meters\ntopic read plant/#\n"
        )
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npassword_file {passwords}\n"
            f"acl_file {access}\nmax_queued_messages 100000\nmax_inflight_messages 1000\n"
            f"persistence true\npersistence_location {folder}/\nuser root\n"
        )
        self.certificate = folder / "broker.pem"
        self.client_certificate, self.client_key = folder / "meters.pem", folder / "meters.key"
        if tls:
            key = folder / "broker.key"
            make_certificate(self.certificate, key)
            make_certificate(self.client_certificate, self.client_key, "meters")
            with self._config.open("a") as config:
                config.write(
                    f"listener {self.tls_port} 127.0.0.1\ncertfile {self.certificate}\nkeyfile {key}\n"
                    f"listener {self.mutual_port} 127.0.0.1\ncertfile {self.certificate}\nkeyfile {key}\n"
                    f"cafile {self.client_certificate}\nrequire_certificate true\n"
                    "use_identity_as_username true\n"
                )
        self._process: subprocess.Popen[bytes] | None = None

    def refuse_by_plugin(self, plugin: Path) -> None:
        """Answer a subscription to anything but plant/# with a refusal; an access list only keeps silent."""
        salt = b"twelve bytes"
        digest = hashlib.pbkdf2_hmac("sha512", b"right", salt, 101)
        users = self._folder / "users.json"
        reads = {"acltype": "subscribePattern", "topic": "plant/#", "allow": True}
        login = {"password": b64encode(digest).decode(), "salt": b64encode(salt).decode(), "iterations": 101}
        everybody = {
            "publishClientSend": True,
            "publishClientReceive": True,
            "subscribe": False,
            "unsubscribe": True,
        }
        users.write_text(
            json.dumps(
                {
                    "defaultACLAccess": everybody,
                    "clients": [{"username": "reader", **login, "roles": [{"rolename": "reads"}]}],
                    "roles": [{"rolename": "reads", "acls": [reads]}],
                }
            )
        )
        users.chmod(0o600)
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"plugin {plugin}\nplugin_opt_config_file {users}\n"
        )

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("mosquitto did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Sessions and queues, as of a broker without persistence; while it is stopped."""
        (self._folder / "mosquitto.db").unlink()


class Gateway:
    """Publishes as a gateway would, and returns when the broker has it."""

    def __init__(self, port: int) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def publish(self, topic: str, payload: str | bytes, qos: int = 1, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos, retain).wait_for_publish(5.0)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (tests/peers/install.sh)")
    started = Broker(tmp_path)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (tests/peers/install.sh)")
    started = Broker(tmp_path, tls=True)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def gateway(broker: Broker) -> Iterator[Gateway]:
    connected = Gateway(broker.port)
    yield connected
    connected.close()


@pytest.fixture
def gateway_to() -> type[Gateway]:
    return Gateway


def mqtt_plant(port: int, points: dict[str, MqttSource], **options: object) -> Plant:
    """A plant with one broker, one device and the given points."""
    return Plant(
        id="t",
        name=Label("测", "t"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN",
        base_interval_s=60,
        method_sets=("ghg-protocol",),
        areas=(),
        connections=(Connection("mq1", Protocol.MQTT, {"host": "127.0.0.1", "port": port, **options}),),
        devices=(Device("gw", "mq1", None, tuple(points)),),
        points=tuple(
            Point(name, "active_power_total", "kW", Kind.GAUGE, "gw", source, invalid_values=(-9999.0,))
            for name, source in points.items()
        ),
        nodes=(),
        edges=(),
        alerts=(),
        folder="",
        fingerprint="",
    )


@pytest.fixture
def plant_of() -> Callable[..., Plant]:
    return mqtt_plant
