"""The tree against a plain model of a file system that only we change: whatever it believes has to be true.

Questions are answered late, in any order, with what was true when they were asked; changes happen in between. The
model knows the truth at every moment.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sshmuxfs.sftp.protocol import Attributes
from sshmuxfs.tree.inodes import NEVER_S, Gone, Inode, Tree

NAMES = [b"a", b"b", b"c"]
FOREVER_S = 1e9


@dataclass(eq=False)
class Node:
    """A file or directory as it really is, and what the tree has for it."""

    directory: bool
    size: int = 0
    entries: dict[bytes, Node] = field(default_factory=dict)
    inode: Inode | None = None
    lookups: int = 0
    files: list[object] = field(default_factory=list)

    def attributes(self) -> Attributes:
        kind = stat.S_IFDIR if self.directory else stat.S_IFREG
        return Attributes(size=self.size, permissions=kind | 0o644)


@dataclass(eq=False)
class Question:
    """Asked about the names of `parent`, and what the server will say: attributes, or None for "no such file"."""

    parent: Node
    as_of: int
    asked_at_s: float
    said: dict[bytes, Attributes | None]
    whole: bool  # whether it was for the whole listing


numbers = st.integers(0, 1000)
names = st.sampled_from(NAMES)


class TreeMachine(RuleBasedStateMachine):
    MAX_IDLE = 10_000
    LATE = True  # whether changes come between a question and its answer

    def __init__(self) -> None:
        super().__init__()
        self.tree = Tree(b"/base", max_idle=self.MAX_IDLE)
        self.root = Node(directory=True, inode=self.tree.root)
        # What was there before us: unknown to the tree until it is asked for.
        self.root.entries = {b"a": Node(False, 5), b"b": Node(True, entries={b"a": Node(False, 6)})}
        self.now_s = 0.0
        self.questions: list[Question] = []
        self.nameless: list[Node] = []  # removed, and still referred to

    # -- helpers ------------------------------------------------------------------------------------------------------

    def tick(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def walk(self) -> Iterator[tuple[Node, bytes, Node]]:
        ahead = [self.root]
        while ahead:
            parent = ahead.pop()
            for name, node in parent.entries.items():
                yield parent, name, node
                if node.directory:
                    ahead.append(node)

    def known(self, node: Node) -> Inode | None:
        """The inode of a node, if the tree still has it under a name."""
        inode = node.inode
        if inode is None or inode.gone:
            return None
        try:
            return inode if self.tree.inode(inode.number) is inode else None
        except Gone:
            return None

    def directory(self, number: int) -> Node:
        """A directory the kernel refers to: it names no other."""
        found = [self.root, *(node for _, _, node in self.walk() if node.directory and node.lookups)]
        return found[number % len(found)]

    def referred(self, number: int, *, files: bool = False) -> tuple[Node, bytes, Node] | None:
        found = [each for each in self.walk() if each[2].lookups and (each[0] is self.root or each[0].lookups)]
        found = [each for each in found if not (files and each[2].directory)]
        return found[number % len(found)] if found else None

    def inode(self, node: Node) -> Inode:
        assert node.inode is not None
        return node.inode

    def learn(self, question: Question, name: bytes) -> None:
        parent, said = self.inode(question.parent), question.said[name]
        if said is None:
            self.tree.learn_absent(parent, name, question.asked_at_s, question.as_of)
            return
        inode = self.tree.learn(parent, name, said, question.asked_at_s, question.as_of)
        assert (inode is not None) == (name in question.parent.entries)
        if inode is not None:
            question.parent.entries[name].inode = inode

    def refer(self, node: Node) -> None:
        self.tree.refer(self.inode(node))
        node.lookups += 1

    def let_go(self, node: Node) -> None:
        """It has lost a name; keep an eye on it as long as anyone refers to it."""
        if not any(each is node for _, _, each in self.walk()) and node not in self.nameless:
            self.nameless.append(node)

    def put(self, question: Question) -> None:
        self.questions.append(question)
        if not self.LATE:
            self.hear(self.questions.pop())

    def hear(self, question: Question) -> None:
        for name in question.said:
            self.learn(question, name)
        parent = self.inode(question.parent)
        if question.whole:
            self.tree.learn_complete(parent, set(question.said), question.asked_at_s, question.as_of)
        self.tree.end_asking(parent)

    # -- asking -------------------------------------------------------------------------------------------------------

    @rule(number=numbers, name=names)
    def look_up(self, number: int, name: bytes) -> None:
        parent = self.directory(number)
        node = parent.entries.get(name)
        with self.tree.asking(self.inode(parent)) as as_of:
            said = {name: node.attributes() if node else None}
            self.learn(Question(parent, as_of, self.tick(), said, False), name)
        if node is not None:
            self.refer(node)

    @precondition(lambda self: len(self.questions) < 4)
    @rule(number=numbers, name=names)
    def ask(self, number: int, name: bytes) -> None:
        parent = self.directory(number)
        node = parent.entries.get(name)
        as_of = self.tree.begin_asking(self.inode(parent))
        said = {name: node.attributes() if node else None}
        self.put(Question(parent, as_of, self.tick(), said, False))

    @precondition(lambda self: len(self.questions) < 4)
    @rule(number=numbers)
    def ask_for_all(self, number: int) -> None:
        parent = self.directory(number)
        as_of = self.tree.begin_asking(self.inode(parent))
        said: dict[bytes, Attributes | None] = {name: node.attributes() for name, node in parent.entries.items()}
        self.put(Question(parent, as_of, self.tick(), said, True))

    @precondition(lambda self: self.questions)
    @rule(number=numbers)
    def answer(self, number: int) -> None:
        self.tick()
        self.hear(self.questions.pop(number % len(self.questions)))

    # -- changing -----------------------------------------------------------------------------------------------------

    @rule(number=numbers, name=names, directory=st.booleans())
    def make(self, number: int, name: bytes, directory: bool) -> None:
        parent = self.directory(number)
        if name in parent.entries:
            return
        node = parent.entries[name] = Node(directory)
        node.inode = self.tree.add(self.inode(parent), name)
        self.tree.update(node.inode, node.attributes(), self.tick(), self.tree.changes)
        if directory:
            self.tree.made_directory(node.inode, self.now_s)
        self.refer(node)

    @rule(number=numbers)
    def write(self, number: int) -> None:
        found = self.referred(number, files=True)
        if found:
            found[2].size += 1
            self.tree.touch(self.inode(found[2]))

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        found = self.referred(number)
        if found and not found[2].entries:
            parent, name, node = found
            del parent.entries[name]
            self.tree.remove(self.inode(parent), name)
            self.let_go(node)

    @rule(number=numbers, to=numbers, name=names)
    def rename(self, number: int, to: int, name: bytes) -> None:
        found = self.referred(number)
        if not found:
            return
        parent, old_name, node = found
        target = self.directory(to)
        replaced = target.entries.get(name)
        if replaced is not None and (replaced.entries or replaced.directory != node.directory):
            return
        ahead = target
        while ahead is not self.root:  # not into itself
            if ahead is node:
                return
            ahead = next(above for above, _, each in self.walk() if each is ahead)
        self.tree.rename(self.inode(parent), old_name, self.inode(target), name)
        if replaced is node:
            return  # rename(2) between two names of one file does nothing
        del parent.entries[old_name]
        target.entries[name] = node
        if replaced is not None:
            self.let_go(replaced)

    @rule(number=numbers, to=numbers, name=names)
    def link(self, number: int, to: int, name: bytes) -> None:
        found = self.referred(number, files=True)
        target = self.directory(to)
        if found and name not in target.entries:
            target.entries[name] = found[2]
            self.tree.link(self.inode(found[2]), self.inode(target), name)

    @rule(number=numbers, name=names)
    def doubt(self, number: int, name: bytes) -> None:
        self.tree.distrust(self.inode(self.directory(number)), name)

    # -- references ---------------------------------------------------------------------------------------------------

    @rule(number=numbers, count=st.integers(1, 3))
    def forget(self, number: int, count: int) -> None:
        """The kernel forgets a file, or a directory of which it knows nothing within."""
        found = [each[2] for each in self.walk()] + self.nameless
        found = [node for node in found if node.lookups and not any(n.lookups for n in node.entries.values())]
        found = [node for node in found if all(question.parent is not node for question in self.questions)]
        if found:
            node = found[number % len(found)]
            count = min(count, node.lookups)
            node.lookups -= count
            self.tree.forget(self.inode(node).number, count)

    @rule(number=numbers)
    def open(self, number: int) -> None:
        found = self.referred(number, files=True)
        if found:
            found[2].files.append(object())
            self.tree.open_file(self.inode(found[2]), found[2].files[-1])

    @rule(number=numbers)
    def close(self, number: int) -> None:
        nodes = [node for node in {id(n): n for _, _, n in self.walk()}.values() if node.files] + [
            node for node in self.nameless if node.files
        ]
        if nodes:
            node = nodes[number % len(nodes)]
            self.tree.close_file(self.inode(node), node.files.pop())

    # -- what has to hold ---------------------------------------------------------------------------------------------

    @invariant()
    def what_is_referred_to_is_known_under_its_number(self) -> None:
        numbers = set()
        for node in [*{id(n): n for _, _, n in self.walk()}.values(), *self.nameless]:
            if node.lookups or node.files:
                inode = self.inode(node)
                assert self.tree.inode(inode.number) is inode
                numbers.add(inode.number)
                assert inode.lookups == node.lookups
        referred = [n for n in {id(n): n for _, _, n in self.walk()}.values() if n.lookups or n.files]
        assert len(numbers) == len(referred) + sum(1 for n in self.nameless if n.lookups or n.files)

    @invariant()
    def what_is_believed_is_true(self) -> None:
        for parent in [self.root, *(node for _, _, node in self.walk() if node.directory)]:
            inode = self.known(parent) if parent is not self.root else self.tree.root
            if inode is None or inode.directory is None:
                continue
            for name, child in inode.directory.children.items():
                node = parent.entries[name]
                assert child is node.inode
                assert (parent.inode, name) in child.names()
                if child.fetched_at_s > NEVER_S:
                    assert child.attributes == node.attributes()
            for name in NAMES:
                if self.tree.is_absent(inode, name, self.now_s, FOREVER_S):
                    assert name not in parent.entries

    @invariant()
    def paths_lead_where_they_should(self) -> None:
        for _, _, node in self.walk():
            inode = self.known(node)
            if inode is None:
                continue
            at = self.root
            for part in self.tree.path(inode).split(b"/")[2:]:
                at = at.entries[part]
            assert at is node
            true_links = sum(1 for _, _, each in self.walk() if each is node)
            assert 1 <= inode.link_count <= true_links

    @invariant()
    def nothing_is_kept_that_nobody_can_reach(self) -> None:
        assert len(self.tree._idle) <= self.MAX_IDLE
        reachable = {id(inode) for inode in self.tree._by_number.values()}
        for inode in list(self.tree._by_number.values()):
            assert not (inode.gone and not inode.lookups and not inode.files and not inode.directory)
            for parent, name in inode.names():
                assert parent.directory is not None
                assert parent.directory.children[name] is inode
                assert id(parent) in reachable


class CrampedTreeMachine(TreeMachine):
    """The same with room for two idle inodes: what is dropped is unknown again, and never believed absent.

    Answers come at once here: that a change was made is not remembered beyond the inode, which in practice is dropped
    only when thousands of others were used since.
    """

    MAX_IDLE = 2
    LATE = False


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestCrampedTree = CrampedTreeMachine.TestCase
TestCrampedTree.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
