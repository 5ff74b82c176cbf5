"""What the documentation claims: every row is there, and the tests that it names exist and are run.

Run: python3 -m unittest discover -s tests/tools
"""

import csv
import json
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
PAGE = "docs/aufs-compatibility.md"
FEATURES = 73
PEERS = "docs/reliability.md", "## What the peers get wrong"


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def reasons(path):
    lines = (line for line in read(path).splitlines() if not line.startswith("#"))
    return {row[0] for row in csv.reader(lines, delimiter="\t") if row}


def rows(page):
    """(number, the cells after it) of each row of the table."""
    for line in page.splitlines():
        if re.match(r"\| \d+ \|", line):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            yield int(cells[0]), cells[1:]


def failures(page, heading):
    """(failure, where, proof) of each row of the table below a heading."""
    table = page.partition("\n%s\n" % heading)[2].partition("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and not cells[0].startswith(("--", "**", "failure")):
            yield cells


def binaries():
    """{name: where its sources lie} of everything that cargo test runs."""
    found = {"unionfs": "unionfs/src", "uaufs": "unionfs/src", "ulaunch": "launcher/src"}
    for package in ("unionfs", "launcher"):
        manifest = read(package + "/Cargo.toml")
        for name, path in re.findall(r'\[\[test\]\]\s+name = "([^"]+)"\s+path = "\.\./([^"]+)"', manifest):
            found[name] = os.path.dirname(path) if path.endswith("/main.rs") else path
    return found


def sources(place):
    if place.endswith(".rs"):
        return [place]
    return [os.path.relpath(os.path.join(top, name), ROOT)
            for top, _, names in os.walk(os.path.join(ROOT, place)) for name in names if name.endswith(".rs")]


def rust_tests(text):
    """{name: whether it is ignored} of the tests in a source file."""
    pattern = r"#\[test\]((?:\s*#\[[^\]]*\]|\s*//[^\n]*)*)\s*(?:pub )?fn (\w+)"
    return {name: "ignore" in attributes for attributes, name in re.findall(pattern, text)}


class Proofs:
    """All tests that a row can name."""

    def __init__(self):
        recorded, rows, kinds = (
            {scenario["id"]: scenario for scenario in json.loads(read("tests/aufs/%s.json" % name))["scenarios"]}
            for name in ("scenarios", "rows", "kinds")
        )
        self.aufs = {**recorded, **rows, **kinds}
        self.rows, self.own = set(rows), {*rows, *kinds}
        self.ours = json.loads(read("tests/aufs/ours.json"))
        self.deviations = reasons("docs/aufs-deviations.tsv")
        self.pending = reasons("tests/aufs/pending.tsv")
        self.binaries = binaries()
        self.run = read("scripts/test")

    def wrong(self, proof):
        """What is wrong with a proof; None if it holds."""
        kind, _, name = proof.partition(":")
        check = {"aufs": self.wrong_scenario, "cargo": self.wrong_cargo, "suite": self.wrong_suite}.get(kind)
        return check(name) if check else "no such kind of test"

    def wrong_scenario(self, name):
        scenario = self.aufs.get(name)
        if scenario is None:
            return "no such scenario"
        if name in self.pending:
            return "it is in pending.tsv"
        if scenario.get("cache_dependent"):
            return "it may fail: its outcome depends on caching"
        if name in self.deviations and name not in self.ours:
            return "it is skipped as a deviation: nothing in ours.json says what is right"
        if name not in self.own and name not in self.ours and not scenario.get("expect"):
            return "nothing is recorded"
        return None

    def wrong_cargo(self, name):
        binary, *modules, test = name.split("::")
        place = self.binaries.get(binary)
        if place is None:
            return "no such test binary"
        homes = [path for path in sources(place) if test in rust_tests(read(path))]
        # `tests` is the module in a file; the one before it is the file.
        files = [module for module in modules if module != "tests"]
        homes = [path for path in homes if all(module in re.split(r"[/._]", path) or module in path for module in files)]
        if len(homes) != 1:
            return "found in %d places" % len(homes)
        if rust_tests(read(homes[0]))[test]:
            return "it is ignored"
        return None

    def wrong_suite(self, name):
        # A suite that scripts/test does not run proves nothing.
        if not re.search(r"scripts/(conformance( --quick)? )?%s\b" % re.escape(name), self.run):
            return "scripts/test does not run it"
        return None


class Compatibility(unittest.TestCase):
    def test_every_feature_has_a_row(self):
        self.assertEqual([number for number, _ in rows(read(PAGE))], list(range(1, FEATURES + 1)))

    def test_every_row_is_proved(self):
        proofs = Proofs()
        for number, (feature, how, _, named) in rows(read(PAGE)):
            with self.subTest(row=number):
                self.assertTrue(feature and how)
                tests = re.findall(r"`([^`]+)`", named)
                missing = how.startswith(("**no**", "**not yet**"))
                if missing:
                    continue
                self.assertTrue(tests, "no test")
                for test in tests:
                    self.assertIsNone(proofs.wrong(test), test)

    def test_what_is_wrong_with_a_proof_is_noticed(self):
        proofs = Proofs()
        self.assertIsNone(proofs.wrong("aufs:lookup-top-wins"))
        proofs.pending.add("lookup-top-wins")
        for proof in ("aufs:lookup-top-wins", "aufs:no-such", "cargo:model::no_such", "cargo:nowhere::a", "suite:no-such",
                      "cargo:model::child_that_is_killed", "aufs:udba-reval", "other:x"):
            self.assertIsNotNone(proofs.wrong(proof), proof)

    def test_every_scenario_of_our_own_proves_a_row(self):
        named = set(re.findall(r"`aufs:([^`]+)`", read(PAGE)))
        self.assertEqual(Proofs().rows - named, set())


class Peers(unittest.TestCase):
    def test_every_failure_has_a_proof_that_it_is_not_ours_or_is_admitted(self):
        proofs = Proofs()
        page, heading = PEERS
        found = list(failures(read(page), heading))
        self.assertGreater(len(found), 50)
        for failure, where, proof in found:
            with self.subTest(failure=failure):
                self.assertRegex(where, r"^$|`(fo|fo2|uf|mf|fb|rk|ko)`|#\d")
                tests = re.findall(r"`(\w+:[^`]+)`", proof)
                self.assertTrue(tests or proof.startswith("**ours too**"), "no test")
                for test in tests:
                    self.assertIsNone(proofs.wrong(test), test)


if __name__ == "__main__":
    unittest.main()
