"""Runs the examples of pages: blocks of code marked `console`, as a reader would type them.

  examples.py PAGE...

A line that begins with "# " is a command, typed by root; the lines up to the next one are what it prints, on either
output. "..." stands for anything, in a line or for any number of lines; "[N]" as the last line is an exit status. The
blocks of a page are one session in an empty directory, in a mount namespace of its own. UAUFS names the program.

Prints "FAIL page:line: command" with what came instead; the last line is "N passed, N failed".
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

UAUFS = os.path.realpath(os.environ.get("UAUFS", "/usr/bin/uaufs"))
LIMIT = 60
MARK = "-- done %d --"


def steps(page):
    """(line number, command, expected lines) of every command on the page."""
    found, inside = [], False
    with open(page, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if line.startswith("```"):
                inside = line == "```console"
            elif inside and line.startswith("# "):
                found.append((number, line[2:], []))
            elif inside and found:
                found[-1][2].append(line)
    return found


def matches(expected, output):
    pattern = "".join("(?:.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in expected)
    return re.fullmatch(pattern, output) is not None


def session(commands, directory, tools):
    """What each command printed and its status, from one shell."""
    script = ["cd %s" % directory, "mount --make-rprivate /"]
    for number, command in enumerate(commands):
        script += [command, "printf '\\n%s\\n' $?" % (MARK % number + " %d")]
    # Whatever an example left mounted goes with it.
    script.append("for m in $(awk -v d=%s/ 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | tac); do umount -l \"$m\"; done"
                  % directory)
    log = os.path.join(tools, "log")
    with open(log, "wb") as out:
        # Not a pipe, which a daemon would hold open.
        subprocess.run(["timeout", str(LIMIT), "unshare", "--mount", "bash", "-c", "\n".join(script)], stdin=subprocess.DEVNULL,
                       stdout=out, stderr=out, check=False, env={**os.environ, "PATH": tools + ":" + os.environ["PATH"], "LC_ALL": "C"})
    with open(log, encoding="utf-8", errors="replace") as file:
        text = file.read()
    for number in range(len(commands)):
        output, found, rest = text.partition("\n" + MARK % number + " ")
        if not found:
            yield output, None
            return
        status, _, text = rest.partition("\n")
        yield (output + "\n" if output and not output.endswith("\n") else output), int(status)


def run_page(page):
    """(passed, failed) of one page."""
    wanted = steps(page)
    work = tempfile.mkdtemp(prefix="uaufs-examples-", dir="/var/tmp")
    failed = 0
    try:
        os.chmod(work, 0o755)
        for name in ("tools", "here"):
            os.mkdir(os.path.join(work, name))
        os.symlink(UAUFS, os.path.join(work, "tools/uaufs"))
        results = session([command for _, command, _ in wanted], work + "/here", work + "/tools")
        done = 0
        for (number, command, expected), (output, status) in zip(wanted, results):
            done += 1
            right = int(expected[-1][1:-1]) if expected and re.fullmatch(r"\[\d+\]", expected[-1]) else 0
            lines = expected[:-1] if right else expected
            if status != right or not matches([line for line in lines if line], output):
                failed += 1
                print("FAIL %s:%d: %s (status %s)" % (page, number, command, status))
                print("".join("     %s\n" % line for line in output.splitlines()), end="")
        failed += len(wanted) - done
        if done < len(wanted):
            print("FAIL %s: ended after %d of %d commands" % (page, done, len(wanted)))
    finally:
        shutil.rmtree(work)
    if not wanted:
        print("FAIL %s: no examples" % page)
        failed = 1
    return max(len(wanted), 1) - failed, failed


def main():
    results = [run_page(page) for page in sys.argv[1:]]
    failed = sum(result[1] for result in results)
    print("%d passed, %d failed" % (sum(result[0] for result in results), failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
