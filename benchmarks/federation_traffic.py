"""What leaves a node in a round: every packet, seen in a network namespace of its own.

    python benchmarks/federation_traffic.py [--student resnet20] [--idle 60] [--json]

Two namespaces are joined by a pair of virtual interfaces: the coordinator and an Anvil in one, the
node (`genkd-node join`, as everybody runs it) in the other. The node's side has a default route and
a name server out there, so that whatever it wants to reach leaves by that interface. Every IP
packet out of it counts, with its headers, whatever it was sent for. Needs root and `ip`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "federation"
sys.path.insert(0, str(EXAMPLES))

from demo import ASKS_TO_JOIN, CONNECTED, JOIN_LINE  # noqa: E402
from parties import Narrator, Party, Processes, Service  # noqa: E402

from genkd.provenance.record import run_id_of  # noqa: E402
from genkd.provenance.typed_data import to_hex  # noqa: E402

TEACHER = EXAMPLES / "disjoint_1.safetensors"
CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
RUN = "traffic"
MERGES = re.compile(r"merging 1 releases")
# Private to the namespaces, as are the ports.
COORDINATOR, NODE, PREFIX = "10.231.7.1", "10.231.7.2", 30
NAME_SERVER = "192.0.2.53"  # of a network that exists in documents only (RFC 5737)
CHAIN_PORT, COORDINATOR_PORT, DNS_PORT = 8545, 9092, 53
LEAST_RATIO, ALLOWANCE = 1.1, 64 * 1024
SECONDS_IN_ALL = 900.0
# struct of a packet's IPv4 header, and of the ports at the beginning of TCP and UDP.
IPV4, PORTS, ETHERNET = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HH"), 14
ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 0x0003, 0x0800, 0x0806
SO_RCVBUFFORCE = 33
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
SYN, ACK = 0x02, 0x10


class Network:
    """Two namespaces and the pair of interfaces between them; `close` removes all of it."""

    def __init__(self) -> None:
        mark = f"{os.getpid()}"
        self.coordinator, self.node = f"genkd-c-{mark}", f"genkd-n-{mark}"
        self.interface = f"gkn{mark}"
        self._other = f"gkc{mark}"
        self._resolver = Path("/etc/netns") / self.node
        sides = (
            (self.coordinator, self._other, COORDINATOR),
            (self.node, self.interface, NODE),
        )
        try:
            for namespace, _, _ in sides:
                _ip("netns", "add", namespace)
                for kind in ("all", "default"):  # the kernel's own chatter is nobody's
                    setting = f"net.ipv6.conf.{kind}.disable_ipv6=1"
                    self.do(namespace, "sysctl", "-qw", setting)
            where = ("name", self._other, "netns", self.coordinator)
            peer = ("peer", "name", self.interface, "netns", self.node)
            _ip("link", "add", *where, "type", "veth", *peer)
            for namespace, interface, address in sides:
                _ip("-n", namespace, "address", "add", f"{address}/{PREFIX}", "dev", interface)
                # Packets as they would be on a wire, not the large ones that cards cut up.
                _ip("-n", namespace, "link", "set", interface, "gso_max_segs", "1")
                _ip("-n", namespace, "link", "set", "lo", "up")
                _ip("-n", namespace, "link", "set", interface, "up")
            _ip("-n", self.node, "route", "add", "default", "via", COORDINATOR)
            self._resolver.mkdir(parents=True)
            (self._resolver / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
        except BaseException:
            self.close()
            raise

    def do(self, namespace: str, *words: object) -> None:
        """Run a command in a namespace, to its end."""
        _ip("netns", "exec", namespace, *map(str, words))

    def close(self) -> None:
        """Remove what was made."""
        for namespace in (self.coordinator, self.node):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", namespace)
        shutil.rmtree(self._resolver, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stderr=subprocess.DEVNULL)  # noqa: S607


# ------------------------------------------------------------------ what is counted


@dataclass(frozen=True)
class Packet:
    """A packet that left the node.

    Attributes:
        time: Unix seconds.
        protocol: tcp, udp, icmp, arp or its number.
        address: Where to.
        port: Likewise; 0 without one.
        size: Of the whole IP packet, in bytes.
        payload: Bytes behind the headers; of TCP and UDP.
        opens: Whether it opens a connection.
    """

    time: float
    protocol: str
    address: str
    port: int
    size: int
    payload: int
    opens: bool


def capture(interface: str) -> None:
    """Write a line for each packet that leaves by an interface, until SIGTERM."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 2**20)
        raw.bind((interface, 0))
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        raw.settimeout(0.2)
        print("ready", flush=True)
        while not stopped:
            try:
                data, (_, kind, direction, *_) = raw.recvfrom(65536)
            except TimeoutError:
                continue
            if direction == socket.PACKET_OUTGOING:
                print(json.dumps(asdict(_packet(data, kind))), flush=True)
        # struct tpacket_stats: packets seen, packets that did not fit
        lost = struct.unpack("II", raw.getsockopt(263, 6, 8))[1]
        print(json.dumps({"lost": lost}), flush=True)


def _packet(data: bytes, kind: int) -> Packet:
    if kind != ETH_P_IP:
        name = "arp" if kind == ETH_P_ARP else f"ethertype {kind:#06x}"
        return Packet(time.time(), name, "", 0, len(data) - ETHERNET, 0, False)
    fields = IPV4.unpack_from(data, ETHERNET)
    length, number, address = fields[2], fields[6], socket.inet_ntoa(fields[9])
    behind = ETHERNET + 4 * (fields[0] & 0x0F)
    port, payload, opens = 0, 0, False
    if number in (6, 17):
        port = PORTS.unpack_from(data, behind)[1]
        header = 4 * (data[behind + 12] >> 4) if number == 6 else 8
        payload = length - (behind - ETHERNET) - header
        opens = number == 6 and data[behind + 13] & (SYN | ACK) == SYN
    name = PROTOCOLS.get(number, str(number))
    return Packet(time.time(), name, address, port, length, payload, opens)


@dataclass(frozen=True)
class Traffic:
    """What left a node in a stretch of time. Bytes are of whole IP packets.

    Attributes:
        seconds: How long it was.
        to_coordinator: To the coordinator's port.
        to_chain: To the chain's port.
        names_asked: Packets to any port 53.
        elsewhere: Bytes by every other destination; ARP aside.
        connections: Opened to the coordinator.
        payload: Of `to_coordinator`: what TLS sent, in packets that were full, and in others.
        small_payload: The latter.
        acknowledgements: Of `to_coordinator`: packets that carry nothing.
        headers: Of `to_coordinator`: of packets that carry something.
    """

    seconds: float
    to_coordinator: int
    to_chain: int
    names_asked: int
    elsewhere: dict[str, int]
    connections: int
    payload: int
    small_payload: int
    acknowledgements: int
    headers: int


FULL = 1000  # bytes of payload: a packet of something large


def traffic(packets: Sequence[Packet], start: float, end: float) -> Traffic:
    """Sum up the packets of a stretch of time."""
    here = [one for one in packets if start <= one.time < end and one.protocol != "arp"]
    coordinator, chain, names = [], [], []
    elsewhere: dict[str, int] = {}
    for one in here:
        if one.port == DNS_PORT:
            names.append(one)
        elif (one.protocol, one.address, one.port) == ("tcp", COORDINATOR, COORDINATOR_PORT):
            coordinator.append(one)
        elif (one.protocol, one.address, one.port) == ("tcp", COORDINATOR, CHAIN_PORT):
            chain.append(one)
        else:
            key = f"{one.protocol} {one.address}:{one.port}"
            elsewhere[key] = elsewhere.get(key, 0) + one.size
    full = [one for one in coordinator if one.payload >= FULL]
    small = [one for one in coordinator if 0 < one.payload < FULL]
    return Traffic(
        seconds=end - start,
        to_coordinator=sum(one.size for one in coordinator),
        to_chain=sum(one.size for one in chain),
        names_asked=len(names),
        elsewhere=elsewhere,
        connections=sum(one.opens for one in coordinator),
        payload=sum(one.payload for one in full),
        small_payload=sum(one.payload for one in small),
        acknowledgements=sum(one.size for one in coordinator if not one.payload),
        headers=sum(one.size - one.payload for one in (*full, *small)),
    )


async def relay(address: str, port: int) -> None:
    """Anvil listens on loopback only: pass on what comes to another address, until SIGTERM."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            behind = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer))

    server = await asyncio.start_server(serve, address, port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


# ------------------------------------------------------------------ the federation


@dataclass
class Marks:
    """When what began, in Unix seconds."""

    times: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str) -> None:
        """It begins now."""
        self.times[name] = time.time()


class Federation:
    """A coordinator and one node, each in its namespace."""

    def __init__(self, folder: Path, network: Network, processes: Processes) -> None:
        narrator = Narrator()
        self._network = network
        self._processes = processes
        self.coordinator = Party("coordinator", folder / "coordinator", narrator, processes)
        self.node = Party("node", folder / "node", narrator, processes, threads=1)

    async def start(self, party: Party, program: str, *words: object) -> Service:
        """Start a command of a party in its namespace."""
        here = self._network.node if party is self.node else self._network.coordinator
        executable = Path(sys.executable).parent / program
        return await party.start("/usr/sbin/ip", "netns", "exec", here, executable, *words)

    async def run(self, party: Party, program: str, *words: object) -> dict[str, object]:
        """Run a command of a party to its end."""
        return await (await self.start(party, program, *words)).answer()

    async def set_up(self, mark: Marks) -> None:
        """Everything up to a node that is connected."""
        for party in (self.coordinator, self.node):
            (party.folder / "passphrase.txt").touch(mode=0o600)
            (party.folder / "passphrase.txt").write_text(secrets.token_hex(16))
        keys = 'keys = "keys"\nkey_password_file = "passphrase.txt"\n'
        url = f"http://{COORDINATOR}:{CHAIN_PORT}"
        settings = self.coordinator.folder / "genkd.toml"
        settings.write_text(
            f'[coordinator]\n{keys}host = "{COORDINATOR}"\nport = {COORDINATOR_PORT}\n'
            f'public_rpc_url = "{url}"\n'
        )
        boss = "genkd-coordinator"
        await self.run(self.coordinator, boss, "init", "--host", COORDINATOR)
        await self.run(self.coordinator, boss, "chain", "up", "--port", CHAIN_PORT)
        await self.run(self.coordinator, boss, "open-run", RUN)
        serving = await self.start(self.coordinator, boss, "serve")
        join = shlex.split((await serving.expect(JOIN_LINE))[1])
        chain = settings.read_text().partition("[")[0]
        chain = chain.replace("127.0.0.1", COORDINATOR)
        (self.node.folder / "genkd.toml").write_text(f'{keys}run = "{RUN}"\n{chain}')
        await self.run(self.node, "genkd-node", "init")
        mark("join")
        joining = await self.start(self.node, *join)
        asking = await joining.expect(ASKS_TO_JOIN)
        await self.run(self.coordinator, boss, "admit", asking[1])
        await joining.expect(CONNECTED)

    async def one_round(self, student: str, budget: str, mark: Marks) -> Path:
        """One round with this student; the node's release directory."""
        mark("round")
        words = ("--run", RUN, "--rounds", 1, "--nodes", 1, "--quorum", 1, "--merge", "fedavg")
        more = ("--student", student, "--classes", CLASSES, "--image", "1x32x32", "--wait", "1h")
        running = await self.start(self.coordinator, "genkd-coordinator", "run", *words, *more)
        await self._kept(0)
        mark("distilling")
        status = await self.run(self.node, "genkd-node", "status")
        runs = status["runs"]
        distill, publish = (shlex.split(line) for line in runs[0]["next"])  # type: ignore[index]
        distill[distill.index("TEACHER")] = str(TEACHER)
        await self.run(self.node, *distill, "--budget", budget)
        mark("publishing")
        await self.run(self.node, *publish)
        mark("collecting")
        await running.expect(MERGES)
        mark("merging")
        await running.answer()
        await self._kept(1)
        mark("end")
        (release,) = self.node.folder.glob("runs/*/release/student-0x*")
        return release

    async def _kept(self, number: int) -> None:
        run = to_hex(run_id_of(RUN))
        while not any(
            self.node.folder.glob(f"membership/shared/{run}/round-{number:06d}/student-0x*")
        ):
            await asyncio.sleep(0.2)

    async def end(self) -> None:
        """End everything."""
        await self._processes.end_all()
        if (self.coordinator.folder / "chain").exists():
            await self.run(self.coordinator, "genkd-coordinator", "chain", "down")


@contextlib.contextmanager
def _helper(network: Network, namespace: str, *words: object, out: Path) -> Iterator[None]:
    """A process of this file in a namespace, which says that it is ready first."""
    command = ["ip", "netns", "exec", namespace, sys.executable, __file__, *map(str, words)]
    with out.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            while not out.read_text().startswith("ready"):
                if process.poll() is not None:
                    raise RuntimeError(f"{words[0]} did not start")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait()


def measure(student: str, *, budget: str = "2000passes", idle: float = 60.0) -> dict[str, object]:
    """Run one round with a student and say what left the node.

    Args:
        student: Its architecture.
        budget: Of the node's distillation, which is not what is measured.
        idle: So many seconds with nothing to do are measured before.
    """
    mark = Marks()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        network = Network()
        try:
            seen = folder / "packets"
            watching = _helper(network, network.node, "capture", network.interface, out=seen)
            passing = _helper(
                network,
                network.coordinator,
                *("relay", COORDINATOR, CHAIN_PORT),
                out=folder / "relay",
            )
            with watching, passing:
                release = asyncio.run(_play(folder, network, student, budget, idle, mark))
                size = sum(path.stat().st_size for path in release.iterdir())
            lines = [json.loads(line) for line in seen.read_text().splitlines()[1:]]
        finally:
            network.close()
    lost = lines.pop()["lost"]
    packets = [Packet(**line) for line in lines]
    times = mark.times
    stretches = {
        "joining": ("join", "idle"),
        "idle": ("idle", "round"),
        "round: start student comes": ("round", "distilling"),
        "round: distilling": ("distilling", "publishing"),
        "round: publishing": ("publishing", "collecting"),
        "round: release goes out": ("collecting", "merging"),
        "round: merged student comes": ("merging", "end"),
        "round": ("round", "end"),
    }
    parts = {
        name: asdict(traffic(packets, times[first], times[last]))
        for name, (first, last) in stretches.items()
    }
    whole = traffic(packets, times["round"], times["end"])
    exchange = traffic(packets, times["collecting"], times["end"])
    waiting = traffic(packets, times["idle"], times["round"])
    everything = traffic(packets, 0.0, float("inf"))
    bound = LEAST_RATIO * size + ALLOWANCE
    return {
        "student": student,
        "release_bytes": size,
        "bound": round(bound),
        "to_coordinator": whole.to_coordinator,
        "within_bound": whole.to_coordinator <= bound,
        "exchange": exchange.to_coordinator,
        "exchange_within_bound": exchange.to_coordinator <= bound,
        "idle_bytes_per_second": round(waiting.to_coordinator / waiting.seconds),
        "names_asked": everything.names_asked,
        "elsewhere": everything.elsewhere,
        "packets_lost_by_the_capture": lost,
        "seconds_from_publishing_to_merging": times["merging"] - times["collecting"],
        "parts": parts,
        "times": times,
    }


async def _play(
    folder: Path, network: Network, student: str, budget: str, idle: float, mark: Marks
) -> Path:
    federation = Federation(folder, network, Processes())
    try:
        async with asyncio.timeout(SECONDS_IN_ALL + idle):
            await federation.set_up(mark)
            mark("idle")
            await asyncio.sleep(idle)
            return await federation.one_round(student, budget, mark)
    finally:
        await federation.end()


def table(found: dict[str, object]) -> list[str]:
    """What `measure` found, for people."""
    rows = [
        f"{found['student']}: a release of {found['release_bytes']:,} bytes; "
        f"{found['to_coordinator']:,} bytes left the node for the coordinator in the round, "
        f"at most {found['bound']:,}: {'reached' if found['within_bound'] else 'MISSED'}; "
        f"{found['exchange']:,} of them from the publishing on: "
        f"{'reached' if found['exchange_within_bound'] else 'MISSED'}; "
        f"{found['idle_bytes_per_second']} bytes a second when there is nothing to do; "
        f"merging began {found['seconds_from_publishing_to_merging']:.1f} s after the publishing; "
        f"{found['names_asked']} names asked, elsewhere {found['elsewhere'] or 'nothing'}, "
        f"{found['packets_lost_by_the_capture']} packets lost by the capture",
        "| stretch | s | to the coordinator | full packets | small | headers | acknowledgements "
        "| connections | to the chain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in found["parts"].items():  # type: ignore[attr-defined]
        rows.append(
            f"| {name} | {part['seconds']:.0f} | {part['to_coordinator']:,} | {part['payload']:,} "
            f"| {part['small_payload']:,} | {part['headers']:,} | {part['acknowledgements']:,} "
            f"| {part['connections']} | {part['to_chain']:,} |"
        )
    return rows


def main() -> None:
    """Measure and print; or, in a namespace, watch packets or pass them on."""
    if sys.argv[1:2] == ["capture"]:
        return capture(sys.argv[2])
    if sys.argv[1:2] == ["relay"]:
        return asyncio.run(relay(sys.argv[2], int(sys.argv[3])))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--student", action="append", help="resnet20 and resnet8-half if not said")
    parser.add_argument("--budget", default="2000passes", help="of the node's distillation")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to watch idle")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    students = options.student or ["resnet20", "resnet8-half"]
    found = [measure(one, budget=options.budget, idle=options.idle) for one in students]
    if options.json:
        print(json.dumps(found))
    else:
        print("\n\n".join("\n".join(table(one)) for one in found))


if __name__ == "__main__":
    main()
