# SPDX-License-Identifier: LGPL-2.1-or-later
"""What became of the tests: one result each, the last lines of a run, and the same as JUnit's XML."""

import re
import signal
import xml.etree.ElementTree as xml

from builds import say


class Result:
    """Of one test. timeout: seconds after which it was killed, or None."""

    def __init__(self, name, status, seconds, output, timeout=None):
        self.name, self.status, self.seconds, self.output, self.timeout = name, status, seconds, output, timeout
        self.passed = status == 0 and timeout is None
        self.skipped = status == 77 and timeout is None
        self.fine = self.passed or self.skipped

    @property
    def reason(self):
        """Why it failed or was skipped."""
        if self.timeout is not None:
            return f"killed after {self.timeout:.0f} s"
        if self.skipped:
            lines = [line for line in self.output.splitlines() if line.strip()]
            return lines[-1].strip() if lines else "gives no reason"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return f"exit status {self.status}" + (" (a sanitizer's report)" if self.status == 99 else "")

    def skips_within(self):
        """(name, reason) of the cases that a cmocka program skipped: the reason is what it printed last before."""
        runs, reason = None, ""
        for line in self.output.splitlines():
            match = re.match(r"\[ +(RUN|SKIPPED) +\] (\w+)$", line)
            if not match:
                reason = line.strip()
            elif match[1] == "RUN":
                runs, reason = match[2], ""
            elif match[2] == runs:  # at a group's end cmocka lists them once more
                yield f"{self.name}:{runs}", reason or "gives no reason"
                runs = None

    def notes(self):
        """What it says that it did again."""
        return [line.removeprefix("note: ") for line in self.output.splitlines() if line.startswith("note: ")]


def failed_names(results, fault):
    return [result.name for result in results if not result.fine] + (["the runner"] if fault else [])


def skips(results):
    found = [(result.name, result.reason) for result in results if result.skipped]
    for result in results:
        found += result.skips_within()
    return found


def last_lines(results, notes, fault, max_skips):
    """Prints them; returns whether all is well."""
    failed, skipped = failed_names(results, fault), skips(results)
    survivors = [name for name in failed if name.startswith("mutants/")]
    if failed:
        say("")
        say("failed: " + " ".join(failed))
    if survivors:
        say(f"mutants that survived or could not be judged: {len(survivors)}")
    for title, lines in (("skipped:", skipped), ("begun again:", notes)):
        if lines:
            say("")
            say(title)
            for name, reason in lines:
                say(f"  {name}: {reason}")
    too_many = max_skips is not None and len(skipped) > max_skips
    if too_many:
        say("")
        say(f"FAIL  {len(skipped)} skips, and {max_skips} are allowed")
    passed = sum(result.passed for result in results)
    say(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return not failed and not too_many


def printable(text):
    return re.sub("[^\t\n -~\u00a0-\ud7ff\ue000-\ufffd]", "\ufffd", text)


def write_junit(path, results):
    root = xml.Element("testsuites")
    groups = {}
    for result in results:
        groups.setdefault(result.name.split("/")[0], []).append(result)
    for group, members in groups.items():
        within = [skip for result in members for skip in result.skips_within()]
        suite = xml.SubElement(root, "testsuite", name=group, tests=str(len(members) + len(within)),
                               failures=str(sum(not result.fine for result in members)), errors="0",
                               skipped=str(sum(result.skipped for result in members) + len(within)),
                               time=f"{sum(result.seconds for result in members):.3f}")
        for result in members:
            case = xml.SubElement(suite, "testcase", classname=group, name=result.name.split("/", 1)[1], time=f"{result.seconds:.3f}")
            if result.skipped:
                xml.SubElement(case, "skipped", message=printable(result.reason))
            elif not result.passed:
                xml.SubElement(case, "failure", message=printable(result.reason)).text = printable(result.output)
        for name, reason in within:
            case = xml.SubElement(suite, "testcase", classname=group, name=name.split("/", 1)[1], time="0")
            xml.SubElement(case, "skipped", message=printable(reason))
    xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
