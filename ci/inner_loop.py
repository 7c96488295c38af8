"""Finds in a compiler's machine code the loop in which a kernel spends its time, and what share of it multiplies.

The loop is the innermost one that holds 64 multiply-adds or a matrix instruction, a barrier if the kernel has any,
and exponentials if a loop of the kernel with multiply-adds does: in a fused kernel the loop over key tiles, in a
product the loop over k. Of several, the one with the most multiply-adds: a fused kernel has a loop over the tiles
that every row sees whole, in which it spends its time, and another body for the few at a mask's edge.

Every instruction of the loop counts, each once: loads, stores, addresses, waits, barriers, softmax and branches. What
an inner loop holds counts once, too, however often it runs; `loop_nested` says how many of those there are. A
dual-issued pair counts as two. A loop is the blocks from which its start is reached again without leaving it;
compilers may put others between, so that it can take more than one range of addresses.
"""
import re
from typing import NamedTuple

# Names of multiply-adds, barriers, exponentials and matrix instructions in each family's machine code.
KINDS = {
    "amd": (r"v_(dual_|pk_)?(fma|fmac|fmaak|fmamk|mac|mad)_(legacy_)?(mix(lo|hi)?_)?f(16|32)|v_dot2", r"s_barrier",
            r"v_exp_f32", r"v_(wmma|mfma|swmmac)"),
    "nvidia": (r"ffma|hfma2", r"bar\.sync", r"mufu\.exp2", r"hmma"),
    "apple": (r"ffma|hfma", r"barrier", r"exp2", r"simd_matrix"),
    "adreno": (r"mad\.f(16|32)", r"bar\.g", r"exp2", r"no_such_thing"),
}
LEAST_FMA = 64
AMD_INSTRUCTION = re.compile(r"\t([^;]+);((?: [0-9a-f]{8})+)\s*$")


class Instruction(NamedTuple):
    address: int
    end: int
    names: list  # one, or as many as are issued at once
    target: object = None  # where it may branch to: an address or a label
    falls: bool = True  # may go on to the next


def amd(text):
    """Blocks `BB2:`, branches to them, the encoding behind a semicolon."""
    instructions, labels, address = [], {}, 0
    for line in text[text.rfind("\ndisasm:"):].split("\n")[2:]:
        if line.startswith("BB") and re.match(r"BB\d+:", line):
            labels[line.split(":")[0]] = address
        elif found := AMD_INSTRUCTION.match(line):
            names = [half.split(None, 1)[0] for half in found[1].split("::")]
            target = re.match(r"s_c?branch\w*\s+(BB\d+)", found[1]) if names[0].startswith("s_") else None
            end = address + 4 * (len(found[2]) // 9)
            falls = names[0] not in ("s_branch", "s_endpgm")
            instructions.append(Instruction(address, end, names, target and target[1], falls))
            address = end
        elif line.strip() and not line.startswith(("\t", ";")):
            break
    return instructions, labels


def nvidia(text):
    """Blocks `block 5 L12 [4, 9] -> {`, branches `bra !up0 L1`; every instruction takes 16 bytes."""
    instructions, labels = [], {}
    for line in text[text.rfind("NAK IR after calc_instr_deps"):].split("\n"):
        address = 16 * len(instructions)
        if found := re.match(r"block(?:\.u)? \d+ (\S+) \[", line):
            labels[found[1]] = address
        elif found := re.match(r"(@!?\w+)?\s+(?:\S+(?: \S+)* += )?\s*([a-z][\w.]*)(.*)// delay=", line):
            predicate, name, rest = found.groups()
            target = re.search(r"(L\d+)\s*$", rest) if name == "bra" else None
            always = name in ("exit", "bra") and not predicate and not re.match(r"\s+!?u?p\d", rest)
            instructions.append(Instruction(address, address + 16, [name], target and target[1], not always))
        elif line.startswith("Num GPRs"):
            break
    return instructions, labels


def apple(text):
    """`b2d0: 00c09a83ffff  jmp_any  -31846`: a branch says how far it goes from where it stands."""
    instructions, longest = [], []
    for line in text.split("\n"):
        if found := re.match(r"\s*([0-9a-f]+): ([0-9a-f]+)\s+([a-z]\S*)\s*(.*)", line):
            address = int(found[1], 16)
            if instructions and address <= instructions[-1].address:
                instructions = []  # the preamble is a program of its own
            jump = re.match(r"-?\d+", found[4]) if found[3].startswith("jmp") else None
            instructions.append(Instruction(address, address + len(found[2]) // 2, [found[3]],
                                            jump and address + int(jump[0]), found[3] != "stop"))
            longest = max(longest, instructions, key=len)
    return longest, {}


def adreno(text):
    """Labels `l400:`, flags before the name; every instruction takes 8 bytes. One that repeats counts as often."""
    instructions, labels = [], {}
    for line in text.split("\n"):
        line = line.removeprefix("MESA: info: ").strip()
        address = 8 * len(instructions)
        if re.match(r"l\d+:$", line):
            labels[line[:-1]] = address
        elif found := re.match(r"(?:\([^)]*\))*([a-z][\w.]*)(?: |$)", line):
            target = re.search(r"#(l\d+)$", line) if "#l" in line else None
            falls = found[1] not in ("jump", "end")
            repeats = "(rpt" in line and re.search(r"\(rpt(\d)\)", line)
            names = [found[1]] * (int(repeats[1]) + 1 if repeats else 1)
            instructions.append(Instruction(address, address + 8, names, target and target[1], falls))
    return instructions, labels


def blocks(instructions, labels):
    """Ranges of instructions without a branch in or out of their middle, and which may follow each."""
    index = {instruction.address: i for i, instruction in enumerate(instructions)}
    targets = [index.get(labels.get(i.target, i.target)) for i in instructions]
    starts = {0, *(t for t in targets if t is not None)}
    starts |= {i + 1 for i, to in enumerate(instructions) if targets[i] is not None or not to.falls}
    starts = sorted(start for start in starts if start < len(instructions))
    number = {start: block for block, start in enumerate(starts)}
    spans = [range(start, end) for start, end in zip(starts, [*starts[1:], len(instructions)])]
    after = []
    for block, span in enumerate(spans):
        last = span[-1]
        to = {number[targets[last]]} if targets[last] is not None else set()
        falls = instructions[last].falls and block + 1 < len(spans)
        after.append(to | {block + 1} if falls else to)
    return spans, after


def cycles(nodes, after):
    """The largest sets of nodes of which each reaches every other of its set."""
    before = {node: [] for node in nodes}
    for node in nodes:
        for to in after[node] & nodes:
            before[to].append(node)
    order, seen = [], set()
    for root in sorted(nodes):
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack += [(node, True), *((to, False) for to in after[node] & nodes)]
    found, taken = [], set()
    for root in reversed(order):
        members, stack = set(), [root]
        while stack:
            node = stack.pop()
            if node not in taken:
                taken.add(node)
                members.add(node)
                stack += before[node]
        if len(members) > 1 or root in members and root in after[root]:
            found.append(members)
    return found


def loops(instructions, labels):
    """Sets of instructions, by index: of every loop. Where two loops start with the same block, as an inner one may
    with the one around it, they are told apart by where they come back from."""
    spans, after = blocks(instructions, labels)
    everything, open_ends = set(), [0]  # that is ever reached
    while open_ends:
        node = open_ends.pop()
        if node not in everything:
            everything.add(node)
            open_ends += after[node]
    before = {node: {other for other in everything if node in after[other]} for node in everything}
    found, left = [], [everything]
    while left:
        for members in cycles(left.pop(), after):
            entries = {node for node in members if before[node] - members}
            bodies = [members]
            for entry in entries:
                for end in before[entry] & members:
                    body, open_ends = {entry}, [end]
                    while open_ends:
                        node = open_ends.pop()
                        if node not in body:
                            body.add(node)
                            open_ends += before[node] & members
                    bodies.append(body)
            found += [{i for block in body for i in spans[block]} for body in bodies]
            left.append(members - entries)
    return found


def ranges(instructions, body):
    """Addresses of a loop, from the first byte to the last, in hexadecimal."""
    runs = []
    for i in sorted(body):
        if runs and runs[-1][1] == instructions[i].address:
            runs[-1][1] = instructions[i].end
        else:
            runs.append([instructions[i].address, instructions[i].end])
    return " ".join(f"{first:x}-{end - 1:x}" for first, end in runs)


def inner_loop(family, text):
    """What is known of the loop: addresses, instructions, multiply-adds, matrix instructions, loops in it."""
    instructions, labels = {"amd": amd, "nvidia": nvidia, "apple": apple, "adreno": adreno}[family](text)
    kinds = [re.compile(pattern) for pattern in KINDS[family]]
    # Of each kind, how many a name is; of each instruction that is any, how many it is.
    of_name = {name: [bool(kind.match(name)) for kind in kinds] for i in instructions for name in i.names}
    of_kind = [{i: n for i, instruction in enumerate(instructions) if (n := sum(of_name[name][kind] for name in instruction.names))}
               for kind in range(len(kinds))]
    more = {i: len(instruction.names) - 1 for i, instruction in enumerate(instructions) if len(instruction.names) > 1}

    def counts(body):
        among = lambda some: sum(some[i] for i in body & some.keys())
        return len(body) + among(more), *map(among, of_kind)

    has_barriers = bool(of_kind[1])
    found = loops(instructions, labels)
    counted = [(body, *counts(body)) for body in found]
    counted = [c for c in counted if (c[2] >= LEAST_FMA or c[5]) and (c[3] or not has_barriers)]
    counted = [c for c in counted if c[4]] or counted
    innermost = [c for c in counted if not any(other[0] < c[0] for other in counted)]
    if not innermost:
        return {}
    body, total, fma, _, _, matrix = max(innermost, key=lambda c: c[2] + c[5])
    nested = len({frozenset(other) for other in found if other < body})
    return {"loop": ranges(instructions, body), "loop_instrs": total, "loop_fma": fma, "loop_matrix": matrix,
            "loop_nested": nested}
