/* LD_PRELOAD: this process sees a CPU whose best instruction set for 8-bit products is BEST_ISA, "avx512vnni",
 * "avxvnni" or "avx2". Every CPUID raises a signal (arch_prctl, ARCH_SET_CPUID), whose handler executes it and removes features from the answer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SET_CPUID = 0x1012, MAY_EXECUTE = 1, FAULTS = 0 };

static int hides, keeps_avx512, keeps_vnni;

/* Bits of a register. */
#define BIT(n) (1u << (n))

static void answer(uint32_t leaf, uint32_t part, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(part));
    if (leaf == 7 && part == 0) /* AMX */
        r[3] &= ~(BIT(22) | BIT(24) | BIT(25));
    else if (leaf == 7 && part == 1) { /* AMX FP16, AMX COMPLEX */
        r[0] &= ~BIT(21);
        r[3] &= ~BIT(8);
    } else if (leaf == 0xd && part == 0) { /* the state of AMX */
        r[0] &= ~(BIT(17) | BIT(18));
    } else if (leaf == 0x1d || leaf == 0x1e) { /* AMX's tiles */
        memset(r, 0, 4 * sizeof *r);
    }
    if (keeps_avx512)
        return;
    if (leaf == 7 && part == 0) { /* AVX-512 in all forms */
        r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        r[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(23));
    } else if (leaf == 7 && part == 1) { /* AVX-512 BF16, AVX10; AVX-VNNI and its extensions */
        r[0] &= ~BIT(5);
        r[3] &= ~BIT(19);
        if (!keeps_vnni) {
            r[0] &= ~(BIT(4) | BIT(23));
            r[3] &= ~(BIT(4) | BIT(5) | BIT(10));
        }
    } else if (leaf == 0xd && part == 0) { /* the state of AVX-512 */
        r[0] &= ~(BIT(5) | BIT(6) | BIT(7));
    } else if (leaf == 0x24) { /* AVX10 */
        memset(r, 0, 4 * sizeof *r);
    }
}

static void handler(int number, siginfo_t *info, void *context)
{
    greg_t *const registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *const code = (const uint8_t *)registers[REG_RIP];
    uint32_t r[4];

    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: a real fault */
        (void)signal(number, SIG_DFL);
        return;
    }
    (void)syscall(SYS_arch_prctl, SET_CPUID, MAY_EXECUTE);
    answer((uint32_t)registers[REG_RAX], (uint32_t)registers[REG_RCX], r);
    (void)syscall(SYS_arch_prctl, SET_CPUID, FAULTS);
    registers[REG_RAX] = r[0];
    registers[REG_RBX] = r[1];
    registers[REG_RCX] = r[2];
    registers[REG_RDX] = r[3];
    registers[REG_RIP] += 2;
}

/* Programs must not replace the handler. */
int sigaction(int number, const struct sigaction *act, struct sigaction *old)
{
    int (*const original)(int, const struct sigaction *, struct sigaction *) =
        (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");

    if (number != SIGSEGV || !hides || act == NULL)
        return original(number, act, old);
    if (old != NULL)
        memset(old, 0, sizeof *old);
    return 0;
}

__attribute__((constructor(101))) static void begin(void)
{
    static const char refused[] = "hide: this CPU cannot fault on CPUID\n";
    const char *const best = getenv("BEST_ISA");
    struct sigaction act;

    if (best == NULL)
        return;
    keeps_avx512 = strcmp(best, "avx512vnni") == 0;
    keeps_vnni = strcmp(best, "avxvnni") == 0;
    memset(&act, 0, sizeof act);
    act.sa_sigaction = handler;
    act.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    if (sigaction(SIGSEGV, &act, NULL) != 0 || syscall(SYS_arch_prctl, SET_CPUID, FAULTS) != 0) {
        (void)!write(STDERR_FILENO, refused, sizeof refused - 1);
        _exit(99);
    }
    hides = 1;
}
