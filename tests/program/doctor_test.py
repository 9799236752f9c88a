#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`vireo doctor`: text and JSON agree, the statuses, and for each line of the report the failure of
the call that it comes from."""
import collections
import ctypes
import errno
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from vireo_process import VIREO, forbidding, forbidding_each, run  # noqa: E402

USAGE, NO_KVM, SYSTEM, PERMISSION = 64, 69, 71, 77
# No call of the program's fails so by itself, so who shows it has made the call that was forbidden.
INJECTED, INJECTED_TEXT = errno.EDOM, os.strerror(errno.EDOM)

# System calls of x86-64, and ioctls.
MMAP, IOCTL, MADVISE, CLONE, UNAME, CAPGET = 9, 16, 28, 56, 63, 125
STATFS, PRCTL, UNSHARE, PRLIMIT, SECCOMP, MEMFD_CREATE = 137, 157, 272, 302, 317, 319
USERFAULTFD, IO_URING_SETUP, IO_URING_REGISTER, FACCESSAT2, LANDLOCK = 323, 425, 427, 439, 444
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CHECK_EXTENSION, KVM_RUN = 0xae00, 0xae01, 0xae03, 0xae80
UFFDIO_API, USERFAULTFD_IOC_NEW, TUNGETFEATURES = 0xc018aa3f, 0xaa00, 0x800454cf
KVM_CAP_MAX_VCPUS, KVM_CAP_XCRS = 66, 56

OPTIONAL_CAPABILITIES = {
    "kvm_irqfd": 32, "kvm_ioeventfd": 36, "kvm_irq_routing": 25, "kvm_signal_msi": 77,
    "kvm_manual_dirty_log": 168, "kvm_dirty_ring": 223, "kvm_disable_exits": 143, "kvm_stats_fd": 203,
    "kvm_user_space_msr": 188, "kvm_tsc_control": 60, "kvm_tsc_deadline_timer": 72, "kvm_xsave2": 208}
SYS_FS_CGROUP = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
THP, KSM = "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/ksm/run"

KEYS = ["section", "id", "title", "state", "value", "number", "cost", "remedy"]
LIBC = ctypes.CDLL(None, use_errno=True)


def libc(function, *arguments):
    if getattr(LIBC, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), function)


def leave_mounts():
    """Mounts of our own from here on, with the help of a user namespace where that is needed."""
    new_mounts, new_user, private = 0x20000, 0x10000000, 0x44000
    ids = os.getuid(), os.getgid()
    if os.geteuid() == 0:
        libc("unshare", new_mounts)
    else:
        libc("unshare", new_mounts | new_user)
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"{ids[0]} {ids[0]} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"{ids[1]} {ids[1]} 1")
    libc("mount", None, b"/", None, private, None)


def covering(path, *directories):
    """A preexec_fn: an empty file system over `path`, with `directories` in it."""
    def install():
        leave_mounts()
        libc("mount", b"none", path.encode(), b"tmpfs", 0, b"mode=755")
        for name in directories:
            os.mkdir(f"{path}/{name}")
    return install


def showing(path, source):
    """A preexec_fn: the file `source` in the place of `path`."""
    def install():
        leave_mounts()
        bind = 0x1000
        libc("mount", str(source).encode(), path.encode(), None, bind, None)
    return install


def shown(path, source, state, says, *more):
    """The case of `source` in the place of `path`, where this kernel has that file."""
    return [Case(showing(path, source), state, says, *more)] if os.path.exists(path) else []


def limiting(what, soft):
    return lambda: resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))


def own_cgroup():
    """The directory of our group of cgroup v2, if there is one."""
    found = re.search(r"(?m)^0::(.*)$", pathlib.Path("/proc/self/cgroup").read_text())
    for mount in SYS_FS_CGROUP if found else ():
        if pathlib.Path(mount + found[1], "cgroup.controllers").exists():
            return mount + found[1]
    return None


# How a call of a line fails, and what its line says then; `status` of the program, or None where that
# is not this line's doing; `needs` is a line that must be ok on this host for this one to be asked.
Case = collections.namedtuple("Case", "inject state says status needs", defaults=(None, None))


def kvm_call(request, state, status, argument=None):
    arguments = {1: request} if argument is None else {1: request, 2: argument}
    return Case(forbidding(IOCTL, INJECTED, arguments), state, INJECTED_TEXT, status, "kvm_api_version")


def system_call(number, state, arguments=None, status=None, needs=None):
    return Case(forbidding(number, INJECTED, arguments), state, INJECTED_TEXT, status, needs)


def kvm_cases(files):
    cases = {
        "kvm_device": [Case(covering("/dev"), "lacking", "No such file", NO_KVM)],
        "kvm_api_version": [kvm_call(KVM_GET_API_VERSION, "lacking", NO_KVM),
                            *shown("/dev/kvm", files / "empty", "lacking", "Inappropriate ioctl", NO_KVM,
                                   "kvm_api_version")],
        "kvm_flavour": [
            Case(covering("/sys"), "unknown", "/sys/module: No such file"),
            Case(covering("/sys/module", "kvm"), "lacking", "neither kvm_intel nor kvm_amd is loaded"),
            Case(covering("/sys/module", "kvm_soft"), "lacking", "kvm_soft: a software KVM"),
            Case(covering("/sys/module", "kvm_intel"), "ok", "VT-x"),
            Case(covering("/sys/module", "kvm_amd"), "ok", "AMD-V")],
        "kvm_required_capabilities": [
            kvm_call(KVM_CHECK_EXTENSION, "lacking", NO_KVM, KVM_CAP_XCRS),
            Case(forbidding(IOCTL, 0, {1: KVM_CHECK_EXTENSION, 2: KVM_CAP_XCRS}), "lacking",
                 "lacks KVM_CAP_XCRS", NO_KVM, "kvm_api_version")],
        "kvm_vm": [kvm_call(KVM_CREATE_VM, "lacking", SYSTEM)],
        "kvm_max_vcpus": [
            kvm_call(KVM_CHECK_EXTENSION, "unknown", 0, KVM_CAP_MAX_VCPUS),
            Case(forbidding(IOCTL, 0, {1: KVM_CHECK_EXTENSION, 2: KVM_CAP_MAX_VCPUS}), "lacking",
                 "0, where vireo could use 64", 0, "kvm_api_version")],
        "guest_kernel_speed": [kvm_call(KVM_RUN, "lacking", NO_KVM)],
        "guest_user_speed": [kvm_call(KVM_RUN, "lacking", NO_KVM)],
    }
    for name, number in OPTIONAL_CAPABILITIES.items():
        cases[name] = [kvm_call(KVM_CHECK_EXTENSION, "unknown", 0, number),
                       Case(forbidding(IOCTL, 0, {1: KVM_CHECK_EXTENSION, 2: number}), "lacking",
                            "does not have it", 0, "kvm_api_version")]
    return cases


def io_uring_cases():
    # The numbers that the rings of single_issuer and defer_taskrun have entries tell their calls apart.
    plain, single_issuer, defer_taskrun = {0: 8}, {0: 16}, {0: 32}
    probe, restrictions, enable, ring_fds = {1: 8}, {1: 11}, {1: 12}, {1: 20}
    return {
        "io_uring": [system_call(IO_URING_SETUP, "lacking", plain, SYSTEM, "kvm_vm")],
        "io_uring_single_issuer": [system_call(IO_URING_SETUP, "lacking", single_issuer)],
        "io_uring_defer_taskrun": [system_call(IO_URING_SETUP, "lacking", defer_taskrun)],
        "io_uring_opcodes": [system_call(IO_URING_REGISTER, "unknown", probe)],
        "io_uring_restrictions": [system_call(IO_URING_REGISTER, "lacking", restrictions, SYSTEM,
                                              "kvm_vm")],
        "io_uring_registered_ring": [system_call(IO_URING_REGISTER, "lacking", ring_fds),
                                     system_call(IO_URING_REGISTER, "unknown", enable)],
    }


def memory_cases(files):
    hugetlb = 0x40000 | 0x22  # MAP_HUGETLB | MAP_ANONYMOUS | MAP_PRIVATE

    def without_thp():
        thp_disable = 41
        libc("prctl", thp_disable, 1, 0, 0, 0)

    return {
        "transparent_huge_pages": [
            system_call(MADVISE, "lacking", {2: 14}),
            Case(without_thp, "lacking", "switched off for this process"),
            Case(covering("/sys"), "unknown", f"{THP}: No such file"),
            *shown(THP, files / "never", "lacking", "[never]"),
            *shown(THP, files / "always", "ok", "[always]")],
        "huge_pages_2m": [system_call(MMAP, "lacking", {3: hugetlb | 21 << 26})],
        "huge_pages_1g": [system_call(MMAP, "lacking", {3: hugetlb | 30 << 26})],
        "same_page_merging": [
            system_call(MADVISE, "lacking", {2: 12}),
            Case(covering("/sys"), "unknown", f"{KSM}: No such file"),
            *shown(KSM, files / "0", "lacking", "nothing merges pages"),
            *shown(KSM, files / "1", "ok", "pages are being merged")],
        "memfd": [system_call(MEMFD_CREATE, "lacking")],
        "userfaultfd": [Case(forbidding_each((USERFAULTFD, INJECTED, {}),
                                             (IOCTL, INJECTED, {1: USERFAULTFD_IOC_NEW})),
                             "lacking", INJECTED_TEXT)],
        "userfaultfd_features": [system_call(IOCTL, "unknown", {1: UFFDIO_API}, needs="userfaultfd")],
    }


def limit_cases():
    limits = {"limit_open_files": (resource.RLIMIT_NOFILE, 512, "512"),
              "limit_threads": (resource.RLIMIT_NPROC, 200, "200"),
              "limit_locked_memory": (resource.RLIMIT_MEMLOCK, 1 << 20, "1M"),
              "limit_address_space": (resource.RLIMIT_AS, 1 << 50, "1024T"),
              "limit_file_size": (resource.RLIMIT_FSIZE, 1 << 30, "1G")}
    return {name: [system_call(PRLIMIT, "unknown", {1: what}),
                   Case(limiting(what, soft), "lacking", text)]
            for name, (what, soft, text) in limits.items()}


def host_cases(files):
    old_release = 0x20000  # UNAME26
    group = own_cgroup()
    cases = {
        "kernel_release": [system_call(UNAME, "unknown"),
                           Case(lambda: LIBC.personality(old_release), "lacking", "2.6.")],
        "tap_device": [Case(covering("/dev"), "lacking", "No such file")],
        "tap_features": [system_call(IOCTL, "unknown", {1: TUNGETFEATURES}, needs="tap_device"),
                         Case(forbidding(IOCTL, 0, {1: TUNGETFEATURES}), "lacking",
                              "lacks: offloads (IFF_VNET_HDR), several queues", None, "tap_device")],
        "tap_create": [system_call(CAPGET, "unknown"),
                       Case(forbidding(CAPGET, 0), "lacking", "not permitted")],
        "cgroup_v2": [Case(covering("/sys/fs/cgroup"), "lacking", "cgroup v2 is not mounted"),
                      system_call(STATFS, "unknown")],
        "cgroup_controllers": [Case(covering("/sys/fs/cgroup"), "unknown", "no control group")],
        "no_new_privs": [system_call(PRCTL, "lacking", {0: 38})],
        "seccomp_filter": [system_call(SECCOMP, "lacking")],
        "landlock": [system_call(LANDLOCK, "lacking")],
        "mount_namespace": [system_call(UNSHARE, "lacking"),
                            system_call(CLONE, "unknown")],
        "core_scheduling": [system_call(PRCTL, "lacking", {0: 62}),
                            Case(forbidding(PRCTL, 0, {0: 62}), "ok", "available"),
                            Case(forbidding(PRCTL, errno.ENODEV, {0: 62}), "ok", "not needed")],
    }
    if group:
        controllers = f"{group}/cgroup.controllers"
        cases["cgroup_v2"].append(system_call(FACCESSAT2, "lacking"))
        cases["cgroup_controllers"] += [
            *shown(controllers, files / "few", "lacking", "lacks: cpu, io"),
            *shown(controllers, files / "all", "ok", "cpuset cpu io")]
    return cases


def all_cases(files):
    return (kvm_cases(files) | io_uring_cases() | memory_cases(files) | limit_cases()
            | host_cases(files))


def diagnose(**options):
    """The findings by id, and the status."""
    ended = run("doctor", "--json", **options)
    try:
        return {each["id"]: each for each in json.loads(ended.output)["findings"]}, ended.status
    except json.JSONDecodeError:
        raise AssertionError(f"no JSON: {ended}") from None


class DoctorTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.files = pathlib.Path(cls.temporary.name)
        for name, text in (("empty", ""), ("0", "0\n"), ("1", "1\n"),
                           ("always", "[always] madvise never\n"), ("never", "always madvise [never]\n"),
                           ("few", "memory pids\n"), ("all", "cpuset cpu io memory hugetlb pids\n")):
            (cls.files / name).write_text(text)
        cls.findings, cls.status = diagnose()

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def is_ok(self, name):
        return self.findings[name]["state"] == "ok"

    def blocks(self):
        """The status that this host gives by itself."""
        if not self.is_ok("kvm_device"):
            denied = "Permission denied" in self.findings["kvm_device"]["value"]
            return PERMISSION if denied else NO_KVM
        return 0

    def test_the_status_is_that_of_this_host(self):
        self.assertEqual(self.status, self.blocks())

    def test_json_has_its_schema(self):
        ended = run("doctor", "--json")
        report = json.loads(ended.output)
        self.assertEqual(list(report), ["version", "vireo", "can_run", "findings"])
        self.assertEqual(report["version"], 1)
        self.assertEqual(f"vireo {report['vireo']}\n", run("--version").output)
        self.assertEqual(report["can_run"], ended.status == 0)
        ids = [each["id"] for each in report["findings"]]
        self.assertEqual(len(ids), len(set(ids)))
        for each in report["findings"]:
            with self.subTest(each["id"]):
                self.assertEqual(list(each), KEYS)
                for key in ("section", "id"):
                    self.assertRegex(each[key], r"^[a-z][a-z0-9_]*$")
                self.assertIn(each["state"], ("ok", "lacking", "unknown"))
                for key in ("title", "value", "cost", "remedy"):
                    self.assertRegex(each[key], r"^[^\n]*$")
                self.assertTrue(each["title"] and each["value"])
                self.assertIsInstance(each["number"], (int, type(None)))
                # What is lacking costs something and can be mended; nothing else does.
                self.assertEqual(each["state"] == "lacking", bool(each["cost"]))
                self.assertEqual(bool(each["cost"]), bool(each["remedy"]))

    def test_text_and_json_agree(self):
        # Two runs measure two speeds.
        def steady(text):
            return re.sub(r"[0-9.]+ (m|b)illion|1/[0-9]+|[0-9]+ %", "N", text)

        speeds = [f"{each['state']} {each['title']}:" for name, each in self.findings.items()
                  if name in ("guest_kernel_speed", "guest_user_speed")]
        # On an emulator that is busy, they measure two verdicts too: then this run is not the one.
        for _ in range(20):
            ended = run("doctor")
            text = steady(" ".join(ended.output.split()))
            if all(speed in text for speed in speeds):
                break
        self.assertEqual(ended.status, self.status)
        self.assertEqual(ended.errors, "")
        self.assertLessEqual(max(map(len, ended.output.splitlines())), 100)
        at = 0
        for each in self.findings.values():
            line = f"{each['state']} {each['title']}: {each['value']}"
            if each["state"] == "lacking":
                line += f" costs: {each['cost']} mend: {each['remedy']}"
            place = text.find(steady(" ".join(line.split())), at)
            self.assertNotEqual(place, -1, f"{line}\nis not, or not in its place, in\n{ended.output}")
            at = place + 1
        states = [each["state"] for each in self.findings.values()]
        self.assertIn(f"{len(states)} checks: " + ", ".join(f"{states.count(state)} {state}" for state in
                                                            ("ok", "lacking", "unknown")), text)
        self.assertEqual("VMs can run here" in text, ended.status == 0)

    def test_both_speeds_are_measured(self):
        if not self.is_ok("kvm_device"):
            self.assertEqual(self.findings["guest_kernel_speed"]["state"], "unknown")
            return
        for name in ("guest_kernel_speed", "guest_user_speed"):
            each = self.findings[name]
            self.assertIn(each["state"], ("ok", "lacking"))
            self.assertGreater(each["number"], 10_000, each)
            self.assertIn("instructions/s", each["value"])
            self.assertEqual("interpreted" in each["value"], each["state"] == "lacking", each)
        software = "software KVM" in self.findings["kvm_flavour"]["value"]
        if software:
            self.assertEqual(self.findings["guest_kernel_speed"]["state"], "lacking")

    def test_each_line_has_a_failure(self):
        self.assertEqual(sorted(all_cases(self.files)), sorted(self.findings))

    def test_each_failure_shows_in_its_line(self):
        for name, cases in all_cases(self.files).items():
            for case in cases:
                if case.needs and not self.is_ok(case.needs):
                    continue
                with self.subTest(name, says=case.says):
                    findings, status = diagnose(preexec_fn=case.inject)
                    self.assertEqual(list(findings), list(self.findings), "lines come and go")
                    self.assertEqual(findings[name]["state"], case.state, findings[name])
                    self.assertIn(case.says, findings[name]["value"])
                    if case.status is not None:
                        self.assertEqual(status, case.status, findings[name])

    def test_an_ordinary_user_is_told_who_may(self):
        if self.is_ok("kvm_device"):
            if os.geteuid() != 0 or pathlib.Path("/dev/kvm").stat().st_mode & 0o006:
                return  # whoever runs this may
            place = self.files / "public"
            place.mkdir()
            program = shutil.copy(VIREO, place / "vireo")
            for path in (self.files, place):
                path.chmod(0o755)
            done = subprocess.run([program, "doctor"], user=65534, group=65534, extra_groups=[],
                                  capture_output=True, check=False, timeout=60, cwd=place)
            status, output = done.returncode, done.stdout.decode()
        else:
            ended = run("doctor")
            status, output = ended.status, ended.output
        if self.blocks() == NO_KVM:
            self.assertEqual(status, NO_KVM)
            return
        self.assertEqual(status, PERMISSION, output)
        self.assertIn("no VM can run here: KVM device: /dev/kvm: Permission denied", output)
        self.assertIn("add the user to the group that owns /dev/kvm", " ".join(output.split()))

    def test_an_empty_root_directory(self):
        root = self.files / "root"
        root.mkdir()
        shutil.copy(VIREO, root / "vireo")
        libraries = subprocess.run(["ldd", VIREO], capture_output=True, check=False).stdout.decode()
        needed = re.findall(r"(/\S+) \(0x", libraries)
        for library in needed:
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])
        (root / "proc").mkdir(exist_ok=True)

        def enter():
            leave_mounts()
            if needed:
                # A dynamic program, so a sanitizer's: it reads /proc/self/maps.
                recursive_bind = 0x5000
                libc("mount", b"/proc", bytes(root / "proc"), None, recursive_bind, None)
            os.chroot(root)
            os.chdir("/")
        done = subprocess.run(["/vireo", "doctor", "--json"], preexec_fn=enter, capture_output=True,
                              check=False, timeout=60)
        self.assertEqual(done.returncode, NO_KVM, done)
        findings = {each["id"]: each for each in json.loads(done.stdout)["findings"]}
        self.assertEqual(list(findings), list(self.findings))
        self.assertEqual(done.stderr, b"")
        left = sorted(each.name for each in root.iterdir() if each.is_file())
        self.assertEqual(left, ["vireo"])

    def test_it_leaves_nothing_behind(self):
        place = self.files / "here"
        place.mkdir()
        interfaces = sorted(os.listdir("/sys/class/net"))
        ended = run("doctor", cwd=place)
        self.assertEqual(ended.errors, "")
        self.assertEqual(list(place.iterdir()), [])
        self.assertEqual(sorted(os.listdir("/sys/class/net")), interfaces)

    def test_few_resources_are_no_crash(self):
        # A sanitizer looks for leaks by a process of its own.
        env = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
        for name, limits in (("descriptors", [limiting(resource.RLIMIT_NOFILE, 4)]),
                             ("file size", [limiting(resource.RLIMIT_FSIZE, 0)]),
                             ("locked memory", [limiting(resource.RLIMIT_MEMLOCK, 0)]),
                             ("threads", [lambda: os.geteuid() and limiting(resource.RLIMIT_NPROC, 1)()])):
            def limit(limits=limits):
                for each in limits:
                    each()
            with self.subTest(name):
                findings, status = diagnose(preexec_fn=limit, env=env)
                self.assertIn(status, (0, NO_KVM, SYSTEM, PERMISSION))
                self.assertEqual(list(findings), list(self.findings))

    def test_wrong_arguments(self):
        for arguments in (["--jsn"], ["x"], ["--json=maybe"]):
            with self.subTest(arguments):
                ended = run("doctor", *arguments)
                self.assertEqual(ended.status, USAGE, ended)
                self.assertRegex(ended.errors, r"^vireo: .*see vireo doctor --help\)\n$")
        ended = run("doctor", "--help")
        self.assertEqual(ended.status, 0)
        for word in ("--json", "vireo doctor --json", "69", "77", "71"):
            self.assertIn(word, ended.output)
        self.assertIn("vireo doctor", run("--help").output)

    def test_a_report_that_cannot_be_written(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([VIREO, "doctor"], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, SYSTEM, done)
        self.assertEqual(done.stderr, b"vireo: stdout: No space left on device\n")


if __name__ == "__main__":
    unittest.main()
