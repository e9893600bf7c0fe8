"""
Rewrites CUDA sources for a host compiler: launches, shared memory and what depends on the device, nothing else.

Lines keep their numbers. What it does not understand is an error here or at the compiler, never left out in silence.
"""

import re

NAME = r"[A-Za-z_]\w*"


class NotUnderstoodError(ValueError):
    """A source that uses CUDA in a way that is not emulated."""


def without_comments(text: str) -> str:
    kept = r'"(?:\\.|[^"\\\n])*"'
    return re.sub(
        rf"({kept})|//[^\n]*|/\*.*?\*/", lambda m: m[1] or "\n" * m[0].count("\n") or " ", text, flags=re.DOTALL
    )


def end_of(text: str, start: int, opening: str, closing: str) -> int:
    """The index behind the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at + 1
    raise NotUnderstoodError(f"no {closing} for: {text[start : start + 60]}")


def split(text: str) -> list[str]:
    """Arguments, at commas outside every bracket; `<` opens one where a name stands before it without a space."""
    parts, depth, templates = [""], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        templates += letter == "<" and bool(re.match(r"\w<(?![<= ])", text[at - 1 : at + 2]))
        templates -= letter == ">" and templates > 0 and text[at - 1] != "-"
        if letter == "," and depth == templates == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def launches(text: str) -> str:
    """``kernel<T><<<grid, threads, bytes, stream>>>(arguments)`` as ``emu::launch(...)``."""
    while "<<<" in text:
        at = text.index("<<<")
        start = at
        if text[at - 1] == ">":
            depth = 0
            while True:
                start -= 1
                depth += (text[start] == ">") - (text[start] == "<")
                if depth == 0:
                    break
        start = re.search(rf"(?:{NAME}\s*::\s*)*{NAME}\s*$", text[:start]).start()
        close = text.index(">>>", at)
        opening = text.index("(", close)
        if text[close + 3 : opening].strip():
            raise NotUnderstoodError(f"a launch without arguments: {text[start:opening]}")
        end = end_of(text, opening, "(", ")")
        kernel, settings, arguments = text[start:at], text[at + 3 : close], text[opening + 1 : end - 1]
        if len(split(settings)) != 4:
            raise NotUnderstoodError(f"a launch should have grid, threads, bytes and stream: {text[start : close + 3]}")
        name = re.sub(r"\s+", "", kernel)
        comma = ", " if arguments.strip() else ""
        text = f'{text[:start]}::emu::launch("{name}", {settings}, {kernel}{comma}{arguments}){text[end:]}'
    return text


def shared_arrays(text: str) -> str:
    """``__shared__ T a[n][m], b;`` and ``extern __shared__ T a[];`` as the classes of shared.h."""

    def dynamic(match):
        return f'auto {match["name"]} = ::emu::dynamic_shared<{match["type"]}>("{match["name"]}");'

    def static(match):
        kind, *names = match["type"], *split(match["names"])
        lines = []
        for declared in names:
            name, extents = re.fullmatch(rf"({NAME})\s*((?:\[.*\])*)", declared, re.DOTALL).groups()
            one = "" if extents else "[0]"
            lines.append(
                f"static ::emu::Shared<{kind}{extents or '[1]'}> {name}_storage; "
                f'auto&& {name} = {name}_storage.enter("{name}"){one};'
            )
        return " ".join(lines)

    alignment = r"(?:alignas\s*\([^()]*\)\s*|__align__\s*\([^()]*\)\s*)?"
    kind = rf"(?P<type>(?:(?:unsigned|signed|long|short)\s+)*(?:{NAME}\s*::\s*)*{NAME}(?:\s*<[^;]*?>)?)"
    found = re.findall(rf"extern\s+__shared__\s+{alignment}{kind}\s+({NAME})\s*\[\s*\]\s*;", text)
    text = re.sub(rf"extern\s+__shared__\s+{alignment}{kind}\s+(?P<name>{NAME})\s*\[\s*\]\s*;", dynamic, text)
    text = re.sub(rf"__shared__\s+{alignment}{kind}\s+(?P<names>{NAME}[^;]*);", static, text)
    if "__shared__" in text:
        raise NotUnderstoodError(f"shared memory: {text[text.index('__shared__') :].splitlines()[0]}")
    pointers = {name for _, name in found}
    while pointers:  # T* a = b + 1 and T* a = reinterpret_cast<T*>(b) with a dynamic array b
        known = "|".join(pointers)
        value = rf"({NAME})\s*=\s*(?:reinterpret_cast<[^;]*>\s*\(\s*)?(?:{known})\b"
        derived = re.findall(rf"\*\s*(?:const\s+)?{value}", text)
        kind = rf"(?:const\s+)?(?:{NAME}\s*::\s*)*{NAME}\s*\*\s*(?:const\s+)?"
        text = re.sub(rf"{kind}(?={value})", "auto ", text)
        cast = rf"reinterpret_cast<\s*(?:const\s+)?([^;]*?)\s*\*\s*>\s*\(\s*((?:{known})\b[^;()]*)\)"
        text = re.sub(cast, r"(\2).cast<\1>()", text)
        pointers = set(derived) - pointers
    return text


def assertions(text: str) -> str:
    """Those of an index get its value into the message, as the CPU kernels have it."""
    return re.sub(
        r'CUDA_KERNEL_ASSERT\(\s*([^;&|]+?) >= 0 && \1 < ([^;&|]+?) && "([^"]*) should be([^"]*)"\s*\)',
        lambda m: f'EMU_ASSERT_RANGE({m[1]}, {m[2]}, "{m[3]}", "{m[4]}")' + "\n" * m[0].count("\n"),
        text,
    )


def bounds(text: str) -> str:
    """``__launch_bounds__`` as a check where the kernel begins."""
    while "__launch_bounds__" in text:
        start = text.index("__launch_bounds__")
        end = end_of(text, text.index("(", start), "(", ")")
        body = text.index("{", end_of(text, text.index("(", end), "(", ")")) + 1
        check = f" ::emu::check_bounds{text[text.index('(', start) : end]};"
        text = text[:start] + text[end:body] + check + text[body:]
    return text


def little_scratch(text: str) -> str:
    """Gradients that need more than 4096 values of scratch memory are computed in parts, so that small tests do so."""
    if "kMostScratch =" not in text:
        return text
    text, count = re.subn(r"(constexpr int64_t kMostScratch = int64_t\{1\} << )25;", r"\g<1>12;", text)
    if count != 1:
        raise NotUnderstoodError("the emulator no longer finds the limit of the scratch memory, kMostScratch.")
    return text


def rewrite(text: str) -> str:
    text = little_scratch(assertions(without_comments(text)))
    text = bounds(shared_arrays(launches(text)))
    text = re.sub(r"\bat::empty", "::emu::Fill() << at::empty", text)
    text = re.sub(rf"({NAME})\.new_empty\b", r"::emu::Fill() << \1.new_empty", text)
    text = re.sub(r"#\s*pragma\s+unroll\b[^\n]*", "", text)
    return re.sub(r"(TORCH_LIBRARY_IMPL\(\s*\w+\s*,\s*)CUDA\b", r"\1CPU", text)
