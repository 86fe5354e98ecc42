# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fills a manual page's template with what the programs say of themselves.

    generate.py TEMPLATE OUTPUT [NAME PROGRAM]...

A line `@vmm-options@` in the template becomes the list of vmm's options from `vmm --help`, `@vmm-devices@` the
devices from `vmm -device help`, `@img-tool-commands@` the sub-commands from `img-tool --help` and `img-tool COMMAND
--help`, and `@block-options@` and `@block-drivers@` what the program block_drivers prints."""

import re
import subprocess
import sys


def output(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def literal(text):
    """Text that roff does not take for anything else."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def tag(words, body):
    return [".It Xo", *words, ".Xc", *(literal(line) for line in body)]


def option_words(text):
    """`-machine or -M [type=]name` as macros: names, then the argument as it stands."""
    names, argument = [], text.strip()
    while True:
        match = re.match(r"-([\w-]+)(?: or )?(.*)$", argument)
        if not match:
            break
        names.append(match.group(1))
        argument = match.group(2).strip()
    lines = []
    for number, name in enumerate(names):
        if number:
            lines.append(".No or")
        lines.append(".Fl " + literal(name))
    if argument:
        lines.append(literal(argument).replace("[,", "\\:[,"))  # where a long one may be broken
    return lines


def vmm_options(programs):
    """`-name argument   help`, where a long left column has its help on the next line, indented."""
    lines, found = output(programs["vmm"], "--help").splitlines(), []
    start = lines.index("Options:") + 1
    for line in lines[start:]:
        if line.startswith("-"):
            left, _, right = line.partition("  ") if re.search(r"\S  +\S", line) else (line, "", "")
            match = re.match(r"(-\S{1,13}(?: \S+)?) +(\S.*)$", line) if not right else None
            if match and len(line) > 16 and line[15] == " ":
                left, right = line[:16].rstrip(), line[16:]
            found.append([left, [right.strip()] if right else []])
        elif line.startswith("    ") and found:
            found[-1][1].append(line.strip())
        elif line and found:
            break
    if len(found) < 10:
        raise SystemExit("generate.py: finds no options in vmm --help")
    result = [".Bl -tag -width Ds"]
    for left, body in found:
        result += tag(option_words(left), body)
    return result + [".El"]


def table_of(text):
    """Lines `  name=<type>  - help` of an option table's help."""
    result = []
    for line in text.splitlines():
        match = re.match(r"  ([\w.-]+)=<([^>]*)>\s*(?:-\s*(.*))?$", line)
        if match:
            result += tag(
                [f".Cm {literal(match.group(1))} Ns = Ns", f".No {literal(match.group(2))}"], [match.group(3) or ""]
            )
    return [".Bl -tag -width Ds", *result, ".El"] if result else []


def vmm_devices(programs):
    result = []
    for line in output(programs["vmm"], "-device", "help").splitlines():
        match = re.match(r'name "([^"]+)", desc "([^"]*)"', line)
        if match:
            result += [f".Ss {literal(match.group(1))}", literal(match.group(2)[:1].upper() + match.group(2)[1:] + ".")]
            result += table_of(output(programs["vmm"], "-device", match.group(1) + ",help"))
    if not result:
        raise SystemExit("generate.py: finds no devices in vmm -device help")
    return result


def img_tool_options(lines):
    """`  -x, --name ARG   help`; the help of a long one is on the next line."""
    result = []
    for line in lines:
        left, _, right = line.strip().partition("  ")
        if not left.startswith("-"):
            result.append(literal(left))
            continue
        words = [word for word in re.split(r",? ", left) if word]
        names = [literal(word[1:]) for word in words if word.startswith("-")]
        arguments = [literal(word) for word in words if not word.startswith("-")]
        result.append(".It " + " , ".join("Fl " + name for name in names) + "".join(" Ar " + word for word in arguments))
        if right:
            result.append(literal(right.strip()))
    return [".Bl -tag -width Ds", *result, ".El"]


def img_tool_commands(programs):
    names = re.findall(r"^  ([a-z]+) ", output(programs["img-tool"], "--help"), flags=re.M)
    if len(names) < 5:
        raise SystemExit("generate.py: finds no commands in img-tool --help")
    result = []
    for name in names:
        usage, *body = output(programs["img-tool"], name, "--help").splitlines()
        usage = re.sub(r"^usage: \S+ ", "", usage)
        at = body.index("Options:")
        result += [
            f".Ss {name}",
            f".Nm img\\-tool",
            literal(usage),
            ".Pp",
            *(literal(line.strip()) if line.strip() else ".Pp" for line in body[: at - 1]),
            *img_tool_options(body[at + 1 :]),
        ]
    return result


FILLERS = {
    "@vmm-options@": vmm_options,
    "@vmm-devices@": vmm_devices,
    "@img-tool-commands@": img_tool_commands,
    "@block-options@": lambda programs: output(programs["block_drivers"], "common").splitlines(),
    "@block-drivers@": lambda programs: output(programs["block_drivers"]).splitlines(),
}


def main():
    template, target, *rest = sys.argv[1:]
    programs = dict(zip(rest[::2], rest[1::2]))
    result = []
    with open(template, encoding="utf-8") as file:
        for line in file.read().splitlines():
            result += FILLERS[line](programs) if line in FILLERS else [line]
    with open(target, "w", encoding="utf-8") as file:
        file.write("\n".join(result) + "\n")


main()
