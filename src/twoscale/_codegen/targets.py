"""The targets of export: one registry, which the command line, the library and the compile cache read.

A vector instruction set is one entry of ``INSTRUCTION_SETS`` and headers in the folder _codegen/c/kernels/vector, many
of them shared with other sets. The set then becomes part of "native" and a target by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "INSTRUCTION_SETS",
    "PACKAGE_NAMES",
    "TARGETS",
    "VECTOR_TARGETS",
    "WASM_SETS",
    "Architecture",
    "InstructionSet",
    "Target",
    "WeightsInFlash",
]

WeightsInFlash = Literal["int8", "winograd"]


@dataclass(frozen=True)
class Architecture:
    """A family of processors."""

    condition: str
    """Preprocessor condition that is true if the C is compiled for it."""
    macro: str
    """Macro that the C defines if the condition holds."""
    headers: tuple[str, ...]
    """The compiler's headers for its instructions."""
    question: str
    """C expression that is true if this processor has {feature}."""
    questions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Expressions for features that compilers do not know in ``question``."""
    functions: str = ""
    """C of the functions in ``questions``."""


HAS_AVX_VNNI = """
/* Whether this CPU has AVX-VNNI; older compilers cannot tell. The system supports it wherever it supports AVX2. */
__attribute__((unused)) static int has_avxvnni(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;

    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}
"""

HAS_AMX = """
/* Whether this process may use AMX. Linux grants it to the whole process when it is asked for the first time. */
__attribute__((unused)) static int has_amx(void)
{
#if defined(__linux__) && defined(__x86_64__) && !defined(__ILP32__)
    static int known; /* 1 or -1 after the first call; all threads find the same */
    int found = __atomic_load_n(&known, __ATOMIC_RELAXED);

    if (found == 0) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        long refused = 158; /* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) */

        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & 3u << 24) != 3u << 24)
            refused = 1;
        else
            __asm__ volatile("syscall" : "+a"(refused) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
        found = refused != 0 ? -1 : 1;
        __atomic_store_n(&known, found, __ATOMIC_RELAXED);
    }
    return found > 0;
#else
    return 0;
#endif
}
"""

X86 = Architecture(
    "defined(__x86_64__)",
    "HAVE_X86",
    ("cpuid.h", "immintrin.h"),
    '__builtin_cpu_supports("{feature}")',
    {"amxint8": "has_amx()", "avxvnni": "has_avxvnni()", "sse41": '__builtin_cpu_supports("sse4.1")'},
    HAS_AVX_VNNI + HAS_AMX,
)


ARM_FEATURES = """
#if defined(__clang__) && __clang_major__ < 16 /* its header leaves out what the compiler's options do not allow */
#ifndef __ARM_FEATURE_DOTPROD
#define __ARM_FEATURE_DOTPROD 1
#endif
#ifndef __ARM_FEATURE_MATMUL_INT8
#define __ARM_FEATURE_MATMUL_INT8 1
#endif
#endif
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
int sysctlbyname(const char *, void *, size_t *, void *, size_t); /* its header needs more than POSIX */
#elif defined(_WIN32)
#include <windows.h>
#endif

/* Whether this CPU has the instructions that macOS calls `name`, or whose bit Linux sets in an entry of its auxiliary
 * vector, or for which Windows has a number. */
__attribute__((unused)) static int has_arm(unsigned long entry, int bit, const char *name, unsigned number)
{
    (void)entry, (void)bit, (void)name, (void)number;
#if defined(__linux__)
    return (getauxval(entry) >> bit & 1) != 0;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;

    return sysctlbyname(name, &found, &size, NULL, 0) == 0 && found != 0;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(number) != 0;
#else
    return 0;
#endif
}
"""

ARM = Architecture(
    "defined(__aarch64__) && !defined(__AARCH64EB__)",
    "HAVE_ARM",
    (),
    "1",
    {
        "asimddp": 'has_arm(16, 20, "hw.optional.arm.FEAT_DotProd", 43)',
        "i8mm": 'has_arm(26, 13, "hw.optional.arm.FEAT_I8MM", 66)',
    },
    ARM_FEATURES,
)
"""Features have Linux's names. 16 is AT_HWCAP, 26 is AT_HWCAP2."""


@dataclass(frozen=True)
class InstructionSet:
    """A set of vector instructions."""

    name: str
    """Suffix of its kernels."""
    title: str
    headers: tuple[str, ...]
    """Names of its headers, in order."""
    architecture: Architecture | None = None
    """None means any architecture."""
    compile_for: str = ""
    """Argument of gcc's attribute ``target``; empty if all compilers for the architecture have it."""
    features: tuple[str, ...] = ()
    """Features that the processor must have."""
    own_names: tuple[str, ...] = ()
    """Functions and types that its headers define in addition to those of every instruction set."""
    tiles: bool = True
    """Whether its headers define the vectors of conv.c, linear.c and depthwise.c, not NAME_narrow.c in their place."""
    signed: bool = False
    """Whether activations are multiplied as signed bytes, which are less by 128."""
    adds_pairs: bool = False
    """Whether it adds products of bytes in pairs that may saturate."""
    multiplies_matrices: bool = False
    """Whether it multiplies matrices of bytes."""
    compilers: str = ""
    """Preprocessor condition that is true if the compiler has its intrinsics; empty if all have."""
    clang_target: str = ""
    """Argument of clang's attribute ``target``, if it differs."""
    gcc_optimize: str = ""
    """Argument of gcc's pragma ``optimize``, if it needs one."""

    @property
    def macro(self) -> str:
        """Macro that is defined while the kernels are compiled for it."""
        return f"FOR_{self.name.upper()}"

    @property
    def condition(self) -> str:
        """Preprocessor condition that is true where it exists; empty if everywhere."""
        parts = [f"defined({self.architecture.macro})"] if self.architecture else []
        return " && ".join(parts + ([f"({self.compilers})"] if self.compilers else []))

    @property
    def supported(self) -> str:
        """C expression that is true if this processor has it."""
        assert self.architecture is not None
        known, question = self.architecture.questions, self.architecture.question
        return " && ".join(known.get(feature, question.format(feature=feature)) for feature in self.features)


_ARM_NAMES = (
    "activations", "activations_of", "add_taps", "add_windows", "clamp_b", "four_f", "four_i", "interleave",
    "interleaved", "load_table", "look_up", "readable", "rounded_bytes", "saturated", "table256", "tap_weights",
    "unpack_words", "unpacked", "window",
)  # fmt: skip
_ASIMD = ("asimd_parts", "parts", "narrow", "asimd")
_AVX512_NAMES = ("first_lanes", "load_table", "look_up", "quarter_of", "table256")
_TILE_NAMES = ("add_products", "lanes", "readable", "round_part")
_PAIR_NAMES = ("arranged", "arranged_weights", "dot_few_bits", "dot_pairs")
GENERIC = InstructionSet("generic", "any CPU", ("generic",), own_names=("lanes",))
INSTRUCTION_SETS = (
    InstructionSet(
        "amx",
        "AMX",
        ("avx512vnni", "amx"),
        X86,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "amxint8"),
        (
            *_AVX512_NAMES,
            "add_matrices",
            "begin_matrices",
            "begin_sums",
            "end_matrices",
            "matrix_shapes",
            "store_sums",
            "unpack_matrix",
        ),
        multiplies_matrices=True,
        compilers="defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11",
    ),
    InstructionSet(
        "avx512vnni",
        "AVX-512 VNNI",
        ("avx512vnni",),
        X86,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
        _AVX512_NAMES,
    ),
    InstructionSet(
        "avxvnni",
        "AVX-VNNI",
        ("ymm_parts", "x86_parts", "parts", "tiles", "ymm"),
        X86,
        "avx2,fma,avxvnni",
        ("avx2", "fma", "avxvnni"),
        (*_TILE_NAMES, "round_32"),
        compilers="defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11",
    ),
    InstructionSet(
        "avx2",
        "AVX2",
        ("ymm_parts", "x86_parts", "parts", "tiles", "pairs", "ymm"),
        X86,
        "avx2,fma",
        ("avx2", "fma"),
        (*_TILE_NAMES, *_PAIR_NAMES, "round_32"),
        adds_pairs=True,
    ),
    InstructionSet(
        "sse41",
        "SSE4.1",
        ("sse41_parts", "x86_parts", "parts", "tiles", "pairs", "sse41"),
        X86,
        "sse4.1",
        ("ssse3", "sse41"),
        (*_TILE_NAMES, *_PAIR_NAMES),
        adds_pairs=True,
    ),
    InstructionSet(
        "i8mm",
        "AArch64 with I8MM",
        (*_ASIMD, "i8mm"),
        ARM,
        "arch=armv8.2-a+dotprod+i8mm",
        ("asimd", "asimddp", "i8mm"),
        (*_ARM_NAMES, "add_many_windows", "arrange", "channels_of", "of_two"),
        clang_target="dotprod,i8mm",
        gcc_optimize="no-schedule-insns",  # before registers are allocated, it makes gcc copy accumulators in each step
        tiles=False,
    ),
    InstructionSet(
        "dotprod",
        "AArch64 with dot products",
        (*_ASIMD, "dotprod"),
        ARM,
        "arch=armv8.2-a+dotprod",
        ("asimd", "asimddp"),
        _ARM_NAMES,
        clang_target="dotprod",
        tiles=False,
        signed=True,
    ),
    InstructionSet(
        "neon",
        "AArch64",
        (*_ASIMD, "neon"),
        ARM,
        features=("asimd",),
        own_names=(*_ARM_NAMES, "add_word", "add_words"),
        tiles=False,
        signed=True,
    ),
)
"""The fastest first, for each architecture."""

WASM = Architecture("defined(__wasm_simd128__)", "HAVE_WASM", ("wasm_simd128.h",), "1")

_WASM_NAMES = (
    "activations", "activations_of", "add_half", "add_taps", "add_windows", "clamp_b", "four_f", "four_i",
    "interleave", "interleaved", "readable", "rounded_bytes", "saturated", "tap_weights", "unpacked", "window",
)  # fmt: skip
_V128 = ("v128_parts", "parts", "narrow", "v128")
WASM_SETS = (
    InstructionSet(
        "relaxed",
        "relaxed SIMD, unsigned",
        _V128,
        WASM,
        "simd128,relaxed-simd",
        ("simd128", "relaxed-simd"),
        _WASM_NAMES,
        tiles=False,
    ),
    InstructionSet(
        "relaxed_signed",
        "relaxed SIMD, signed",
        _V128,
        WASM,
        "simd128,relaxed-simd",
        ("simd128", "relaxed-simd"),
        _WASM_NAMES,
        tiles=False,
        signed=True,
    ),
    InstructionSet("simd128", "SIMD128", _V128, WASM, "simd128", ("simd128",), _WASM_NAMES, tiles=False),
)
"""Those of WebAssembly. Each is a module of its own; the fastest first."""


@dataclass(frozen=True)
class Target:
    """A target of the C export."""

    name: str
    back_end: Literal["cortex-m", "portable", "small-ram", "vector"]
    promise: str
    """Intended use, as part of a sentence."""
    cflags: str
    """Optimization flags of its Makefile."""
    instruction_sets: tuple[InstructionSet, ...] = ()
    """Instruction sets that the C chooses from at run time; the last is for CPUs with none of the others."""
    little_ram: bool = False
    """Whether layers compute row by row where that saves memory; of the back end "cortex-m"."""
    helium: bool = False
    """Whether kernels use Helium; of the back end "cortex-m"."""
    weights_in_flash: WeightsInFlash = "int8"
    """How convolutions store weights; "winograd" is of the target "cortex-m4"."""

    @property
    def always_multiplies_matrices(self) -> bool:
        """Whether each of its instruction sets multiplies matrices, except the plain C for any CPU."""
        special = [isa for isa in self.instruction_sets if isa is not GENERIC]
        return bool(special) and all(isa.multiplies_matrices for isa in special)


def _all_targets() -> tuple[Target, ...]:
    vector: list[tuple[str, str, tuple[InstructionSet, ...]]] = [
        ("native", "big CPUs, with the instruction set chosen when it runs", INSTRUCTION_SETS)
    ]
    vector += [(isa.name, f"big CPUs with {isa.title}", (isa,)) for isa in INSTRUCTION_SETS]
    return (
        Target("portable", "portable", "microcontrollers", "-O2"),
        Target("small-ram", "small-ram", "microcontrollers with little memory", "-O2"),
        Target("cortex-m4", "cortex-m", "Cortex-M4, M7 and M33 with the DSP extension", "-O2"),
        Target("cortex-m4-small-ram", "cortex-m", "the same cores with little memory", "-O2", little_ram=True),
        Target("cortex-m55", "cortex-m", "Cortex-M55 and M85 with Helium", "-O2", helium=True),
        Target(
            "cortex-m55-small-ram", "cortex-m", "these cores with little memory", "-O2", little_ram=True, helium=True
        ),
        *(Target(name, "vector", promise, "-O3", instruction_sets=(*isas, GENERIC)) for name, promise, isas in vector),
    )


TARGETS = {target.name: target for target in _all_targets()}
"""By name."""
VECTOR_TARGETS = {target.name: target for target in TARGETS.values() if target.instruction_sets}
"""Targets that compute batches with vector kernels and threads."""
PACKAGE_NAMES = ("arduino", "platformio", "zephyr", "esp-idf", "cmsis-pack")
"""Forms of libraries for microcontrollers."""
