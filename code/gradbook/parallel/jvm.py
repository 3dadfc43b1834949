"""The threads of a Java program: as its own management interface lists them, and as Linux does.

The program is compiled and run if a JDK (11 or later) is there. If not, what it printed on one
machine is used.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gradbook.parallel.systems import Unsupported, require_proc

# Prints lines "kind|what|more".
SOURCE = """
import java.io.IOException;
import java.lang.management.*;
import java.nio.file.*;
import java.util.concurrent.CountDownLatch;

public class Threads {
    static final Object a = new Object(), b = new Object();
    static final CountDownLatch both = new CountDownLatch(2);
    static volatile long count;

    static void take(Object first, Object second) {
        synchronized (first) {
            both.countDown();
            try { both.await(); } catch (InterruptedException e) { return; }
            synchronized (second) { }
        }
    }

    static Thread start(Runnable body) {
        Thread thread = new Thread(body);
        thread.setDaemon(true);  // ends with the program
        thread.start();
        return thread;
    }

    static void see(Thread thread, Thread.State meant) throws Exception {
        for (int i = 0; i < 10000 && thread.getState() != meant; i++)
            Thread.sleep(1);
        System.out.println("state|" + meant + "|" + thread.getState());
    }

    public static void main(String[] args) throws Exception {
        ThreadMXBean bean = ManagementFactory.getThreadMXBean();
        System.out.println("version||"
            + System.getProperty("java.specification.version"));
        for (ThreadInfo t : bean.dumpAllThreads(false, false))
            System.out.println("java|" + t.getThreadId() + "|"
                + t.getThreadName());
        Path tasks = Paths.get("/proc/self/task");
        try (DirectoryStream<Path> all = Files.newDirectoryStream(tasks)) {
            for (Path task : all) try {
                System.out.println("system|" + task.getFileName() + "|"
                    + Files.readString(task.resolve("comm")).trim());
            } catch (IOException e) { }  // it has ended since the listing
        }
        Thread works = start(() -> { while (true) count++; });
        Thread failing = start(() -> { throw new RuntimeException(); });
        failing.join();
        long before = count;
        for (int i = 0; i < 10000 && count == before; i++)
            Thread.sleep(1);
        System.out.println("alive||" + (count != before));

        see(new Thread(() -> { }), Thread.State.NEW);
        see(works, Thread.State.RUNNABLE);
        see(start(() -> {
            try { Thread.sleep(100000); } catch (InterruptedException e) { }
        }), Thread.State.TIMED_WAITING);
        Thread one = start(() -> take(a, b)), two = start(() -> take(b, a));
        see(one, Thread.State.BLOCKED);
        see(two, Thread.State.BLOCKED);
        Thread waits = start(() -> {
            try { one.join(); } catch (InterruptedException e) { }
        });
        see(waits, Thread.State.WAITING);
        see(failing, Thread.State.TERMINATED);
        long[] stuck = bean.findDeadlockedThreads();
        for (long id : stuck == null ? new long[0] : stuck)
            System.out.println("deadlocked|" + id + "|"
                + bean.getThreadInfo(id).getLockOwnerId());
    }
}
"""

STATES = ("NEW", "RUNNABLE", "BLOCKED", "WAITING", "TIMED_WAITING", "TERMINATED")


class Listing(NamedTuple):
    """What the program printed.

    Attributes:
        version: of Java.
        java: names by number, as ``ThreadMXBean`` lists the threads.
        system: names by number, as ``/proc`` lists them; cut to 15 characters.
        states: by the state that was meant, the states that were seen of threads in it.
        alive: whether another thread went on computing after an exception had ended one.
        deadlocked: by deadlocked thread, the holder of the lock that it wants.
    """

    version: str
    java: dict[int, str]
    system: dict[int, str]
    states: dict[str, set[str]]
    alive: bool
    deadlocked: dict[int, int]


def parse(text: str) -> Listing:
    """Read what the program prints.

    Args:
        text: lines "kind|what|more".

    Returns:
        The listing.

    Raises:
        ValueError: if a line has another form, or a part of the listing is missing.
    """
    parts: dict[str, dict[str, str]] = {}
    states: dict[str, set[str]] = {}
    for line in text.strip().splitlines():
        if line.count("|") < 2:
            raise ValueError(f"text: lines are kind|what|more, got {line!r}")
        kind, what, more = line.split("|", 2)
        parts.setdefault(kind, {})[what] = more
        if kind == "state":
            states.setdefault(what, set()).add(more)
    wanted = {"version", "java", "system", "state", "alive"}
    if missing := wanted - set(parts):
        raise ValueError(f"text: has no line of kind {sorted(missing)[0]!r}")

    def numbered(kind: str) -> dict[int, str]:
        return {int(what): more for what, more in parts.get(kind, {}).items()}

    return Listing(
        parts["version"][""],
        numbered("java"),
        numbered("system"),
        states,
        parts["alive"][""] == "true",
        {k: int(v) for k, v in numbered("deadlocked").items()},
    )


def hidden(listing: Listing) -> list[str]:
    """Find the tasks of the system that the management interface does not list.

    Args:
        listing: of both.

    Returns:
        Their names. The interface's main is the task that has the launcher's name.
    """
    known = Counter("java" if n == "main" else n[:15] for n in listing.java.values())
    return list((Counter(listing.system.values()) - known).elements())


def find_java() -> str:
    """Find the launcher of Java.

    Returns:
        Its path.

    Raises:
        Unsupported: if there is none in ``JAVA_HOME`` or on the path.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home, "bin")) if home else None)
    if not (found := found or shutil.which("java")):
        raise Unsupported("java: not found in JAVA_HOME or on the path; a JDK brings it")
    return found


def require_compiler(java: str) -> None:
    """Raise unless a launcher can compile a file and run it.

    Args:
        java: the launcher.

    Raises:
        Unsupported: if it is not that of a JDK, 11 or later.
        TimeoutError: if it does not answer.
    """
    done = _run([java, "--list-modules"], 60.0)  # unknown before Java 9
    found = re.search(r"^jdk\.compiler@(\d+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found or int(found[1]) < 11:
        raise Unsupported(f"{java}: has no compiler that runs a file; a JDK, 11 or later, has")


def measure(java: str, timeout: float = 120.0) -> Listing:
    """Compile and run the program.

    Args:
        java: the launcher of a JDK, which compiles a single file by itself.
        timeout: seconds.

    Returns:
        What it printed.

    Raises:
        Unsupported: if the system has no ``/proc``, or this Java cannot compile.
        RuntimeError: if the program does not compile, or fails.
        ValueError: if it prints something else than a listing.
        TimeoutError: if it takes longer.
    """
    require_proc()
    require_compiler(java)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "Threads.java")
        source.write_text(SOURCE)
        done = _run([java, str(source)], timeout)
    if done.returncode != 0:
        last = done.stderr.strip()[-300:]
        raise RuntimeError(f"java: ended with exit code {done.returncode}: {last}")
    return parse(done.stdout)


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"java: not done within {timeout:g} s, and killed") from None


def listing() -> tuple[Listing, bool]:
    """Run the program, or, without a JDK or ``/proc``, take what it printed once.

    Returns:
        The listing, and whether it was measured here.

    Raises:
        RuntimeError: if there is a JDK, but the program fails.
        ValueError: if it prints something else than a listing.
        TimeoutError: if it takes longer than two minutes.
    """
    try:
        return measure(find_java()), True
    except Unsupported:
        return parse(RECORDED), False


# OpenJDK 17.0.15 on Linux with two cores.
RECORDED = """
version||17
java|1|main
java|2|Reference Handler
java|3|Finalizer
java|4|Signal Dispatcher
java|10|Common-Cleaner
java|11|Notification Thread
system|6006|java
system|6007|java
system|6008|GC Thread#0
system|6009|G1 Main Marker
system|6010|G1 Conc#0
system|6011|G1 Refine#0
system|6012|G1 Service
system|6013|VM Thread
system|6014|Reference Handl
system|6015|Finalizer
system|6016|Signal Dispatch
system|6017|Service Thread
system|6018|Monitor Deflati
system|6019|C2 CompilerThre
system|6020|C1 CompilerThre
system|6021|Sweeper thread
system|6022|Common-Cleaner
system|6023|Notification Th
system|6024|VM Periodic Tas
system|6025|GC Thread#1
alive||true
state|NEW|NEW
state|RUNNABLE|RUNNABLE
state|TIMED_WAITING|TIMED_WAITING
state|BLOCKED|BLOCKED
state|BLOCKED|BLOCKED
state|WAITING|WAITING
state|TERMINATED|TERMINATED
deadlocked|16|17
deadlocked|17|16
"""
