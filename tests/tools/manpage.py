"""Makes the manual pages in man/ of their sources in docs/manual, which are in simple Markdown.

  manpage.py            writes them
  manpage.py --check    fails, naming the page, if they are not what would be written

UAUFS names the program whose --help is read (default: uaufs). Beside headings, paragraphs, lists, tables and blocks of
code a source has these lines:

  @date YEAR-MONTH-DAY  when it was last read with care; the first line
  @include FILE         the sections of another page, without its title
  @options              arguments and options of the program itself
  @commands             a section for every subcommand, from its --help; what follows a line `:NAME`, up to `@end`, is
                        said in that section as well
"""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
SOURCES = os.path.join(ROOT, "docs/manual")
UAUFS = os.environ.get("UAUFS", "uaufs")
LETTERS = {"–": "\\(en", "—": "\\(em", "…": "..."}


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


# ---------------------------------------------------------------- roff

def plain(text):
    """Text in which nothing means anything to roff."""
    text = text.replace("\\", "\\e").replace("'", "\\(aq").replace("`", "\\(ga").replace("~", "\\(ti").replace("^", "\\(ha")
    return "".join(LETTERS.get(letter, letter) for letter in text)


def code(text):
    return plain(text).replace("-", "\\-")


def inline(text):
    """`code`, **bold**, *emphasis* and [links](...) in roff."""
    out = []
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^]]+\]\([^)]+\))", text.replace("\\|", "|")):
        if part.startswith("`") and len(part) > 2:
            out.append("\\fB%s\\fR" % code(part[1:-1]))
        elif part.startswith("**") and len(part) > 4:
            out.append("\\fB%s\\fR" % plain(part[2:-2]))
        elif part.startswith("*") and len(part) > 2:
            out.append("\\fI%s\\fR" % plain(part[1:-1]))
        elif re.match(r"\[.*\)$", part):
            out.append(inline(part[1:part.index("](")]))
        else:
            out.append(plain(part))
    return "".join(out)


def lines(text):
    """A paragraph of roff: a sentence a line, and none that looks like a request."""
    sentences = re.sub(r"(?<=[a-z0-9)R][.:?]) +(?=[A-Z\\])", "\n", " ".join(text.split())).split("\n")
    return "\n".join("\\&" + line if line[:1] in ".'" else line for line in sentences)


def item(name, text):
    return ".TP\n%s\n%s" % (lines(name), lines(text or "\\&"))


def verbatim(block):
    out = []
    for line in block:
        line = code(line)
        out.append("\\&" + line if line[:1] in ".'" else line)
    return ".PP\n.in +4n\n.nf\n%s\n.fi\n.in" % "\n".join(out)


def table(rows):
    """Each row as an item: its first cell is what is explained, the others explain it."""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]] for row in rows]
    heads, out = cells[0], []
    for first, *rest in cells[2:]:
        if heads[1:] == ["default", "meaning"]:
            text = rest[1] + (" (default: %s)" % rest[0] if rest[0] else "")
        elif len(rest) == 1:
            text = rest[0]
        else:
            text = "; ".join("%s: %s" % pair for pair in zip(heads[1:], rest))
        out.append(item(inline(first), inline(text)))
    return "\n".join(out)


# ---------------------------------------------------------------- --help

def help_of(*words):
    """{heading: lines} of a help text, with what stands before the first heading under "about"."""
    text = subprocess.run([UAUFS, *words, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    parts, name = {"about": []}, "about"
    for line in text.splitlines():
        heading = re.match(r"(Usage|Commands|Arguments|Options):(.*)", line)
        if line.startswith("OPTIONS of -o"):
            break
        if heading:
            name = heading[1]
            parts[name] = [heading[2]] if heading[2] else []
        else:
            parts[name].append(line)
    return parts


def entries(part):
    """(name, text) of each argument, option or command."""
    found = []
    for line in part:
        start = re.match(r" {2,6}(\S.*?)(?: {2,}(.*))?$", line)
        if start:
            found.append([start[1], start[2] or ""])
        elif line.strip() and found:
            value = re.sub(r"^- +(\S+): +", r"`\1`: ", line.strip())
            found[-1][1] += (" " if value == line.strip() or value.endswith("values:") else "; ") + value
    return [(name, text.strip().replace("values:;", "values:")) for name, text in found]


def arguments(parts):
    out = []
    for part in ("Arguments", "Options"):
        for name, text in entries(parts.get(part, [])):
            if not name.startswith(("-h,", "-V,")):
                out.append(item("\\fB%s\\fR" % code(name), inline(text)))
    return out


def usage(parts):
    # A literal word of the user stands in capitals without brackets.
    return [re.sub(r"<([^>]+)>", r"\1", line.strip()) for line in parts["Usage"] if line.strip()]


def command(words, prose):
    parts = help_of(*words)
    out = [verbatim(usage(parts)), ".PP\n" + lines(inline(" ".join(parts["about"]).strip() + "."))] + arguments(parts)
    for name, text in entries(parts.get("Commands", [])):
        nested = help_of(*words, "MOUNTPOINT", name)
        out.append(item("\\fB%s\\fR" % code(" ".join(usage(nested)).partition("MOUNTPOINT ")[2]), inline(text + ".")))
        inner = arguments(nested)
        if inner:
            out += [".RS", *inner, ".RE"]
    return "\n".join(out + roff(prose))


def commands(block):
    """The sections of all subcommands; the prose of one that does not exist is an error."""
    prose, name = {}, None
    for line in block:
        if re.match(r":\S+$", line):
            name = line[1:]
            prose[name] = []
        elif name:
            prose[name].append(line)
    out = []
    for name, _ in sorted(entries(help_of()["Commands"])):
        out.append('.SS "uaufs %s"\n%s' % (name, command([name], prose.pop(name, []))))
    if prose:
        sys.exit("docs/manual: no such subcommand: %s" % " ".join(prose))
    return "\n".join(out)


# ---------------------------------------------------------------- pages

def included(path):
    """The lines of another page, one level of headings deeper where it has a title."""
    text = re.sub(r"<!--.*?-->\n?", "", read(os.path.join(ROOT, path)), flags=re.DOTALL)
    return text.split("\n", 1)[1].splitlines()


def roff(source):
    """The source's lines as blocks of roff."""
    out, at = [], 0

    def upto(stop):
        nonlocal at
        start = at
        while at < len(source) and not stop(source[at]):
            at += 1
        return source[start:at]

    while at < len(source):
        line = source[at]
        if not line.strip():
            at += 1
        elif line.startswith("@include "):
            out += roff(included(line.split()[1]))
            at += 1
        elif line == "@options":
            out += arguments(help_of())
            at += 1
        elif line == "@commands":
            at += 1
            out.append(commands(upto(lambda l: l == "@end")))
            at += 1
        elif line.startswith("```"):
            at += 1
            out.append(verbatim(upto(lambda l: l.startswith("```"))))
            at += 1
        elif line.startswith("#"):
            depth, title = re.match(r"(#+) (.*)", line).groups()
            out.append('%s "%s"' % (".SH" if depth == "#" else ".SS", code(title.replace("`", ""))))
            at += 1
        elif line.startswith("|"):
            out.append(table(upto(lambda l: not l.startswith("|"))))
        elif line.startswith("- "):
            text = [source[at][2:]]
            at += 1
            text += upto(lambda l: not l.startswith("  "))
            out.append(".IP \\(bu 2\n" + lines(inline(" ".join(part.strip() for part in text))))
        else:
            text = upto(lambda l: not l.strip() or re.match(r"[#|@]|```|- ", l))
            out.append(".PP\n" + lines(inline(" ".join(text))))
    return out


def page(name):
    title, section = name.split(".")
    first, *source = read(os.path.join(SOURCES, name + ".md")).splitlines()
    body = roff(source)
    # .PP after a heading says nothing.
    text = re.sub(r'(\.S[HS] "[^\n]*")\n\.PP\n', r"\1\n", "\n".join(body))
    head = '.\\" Made by scripts/manual of docs/manual/%s.md.\n.TH %s %s %s uaufs' % (
        name, title.upper(), section, first.partition("@date ")[2])
    return head + "\n" + text + "\n"


def main():
    stale = []
    for source in sorted(os.listdir(SOURCES)):
        name = source[:-3]
        path, text = os.path.join(ROOT, "man", name), page(name)
        if sys.argv[1:] == ["--check"]:
            if not os.path.exists(path) or read(path) != text:
                stale.append("man/" + name)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    if stale:
        sys.exit("%s: not what docs/manual and --help say: run scripts/manual" % " ".join(stale))


if __name__ == "__main__":
    main()
