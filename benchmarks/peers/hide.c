/* LD_AUDIT: this process sees a CPU whose best instruction set for 8-bit products is BEST_ISA, "avx512vnni", "avxvnni" or
 * "avx2". The file CPUID_SITES names libraries, and the addresses of their CPUID instructions (hide.py). When a library is
 * loaded, before its constructors run, each CPUID becomes a UD2; the handler of its signal executes CPUID and removes
 * features from the answer. */
#define _GNU_SOURCE
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { MOST_SITES = 4096, CPUID = 0xa2, UD2 = 0x0b }; /* the second bytes of the instructions; the first is 0x0f */

static const uint8_t *sites[MOST_SITES];
static size_t count;
static int keeps_avx512, keeps_vnni;

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

static void stop(const char *why, const char *what)
{
    fprintf(stderr, "hide: %s %s\n", why, what);
    _exit(99);
}

static int is_site(const uint8_t *code)
{
    for (size_t i = 0; i < count; i++)
        if (sites[i] == code)
            return 1;
    return 0;
}

static void handler(int number, siginfo_t *info, void *context)
{
    greg_t *const registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint32_t r[4];

    (void)info;
    if (!is_site((const uint8_t *)registers[REG_RIP])) { /* the program's own: it ends when the instruction is repeated */
        (void)signal(number, SIG_DFL);
        return;
    }
    answer((uint32_t)registers[REG_RAX], (uint32_t)registers[REG_RCX], r);
    registers[REG_RAX] = r[0];
    registers[REG_RBX] = r[1];
    registers[REG_RCX] = r[2];
    registers[REG_RDX] = r[3];
    registers[REG_RIP] += 2;
}

static void replace(uint8_t *code, const char *path)
{
    const uintptr_t page = (uintptr_t)code & ~(uintptr_t)4095;
    const size_t length = (uintptr_t)code + 2 - page;

    if (code[0] != 0x0f || code[1] != CPUID || count == MOST_SITES)
        stop("there is another instruction, or there are too many, in", path);
    if (mprotect((void *)page, length, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        stop("cannot change", path);
    code[1] = UD2;
    (void)mprotect((void *)page, length, PROT_READ | PROT_EXEC);
    sites[count++] = code;
}

unsigned int la_version(unsigned int version)
{
    const char *const best = getenv("BEST_ISA");
    struct sigaction act;

    if (best == NULL)
        return 0;
    keeps_avx512 = strcmp(best, "avx512vnni") == 0;
    keeps_vnni = strcmp(best, "avxvnni") == 0;
    memset(&act, 0, sizeof act);
    act.sa_sigaction = handler;
    act.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    if (sigaction(SIGILL, &act, NULL) != 0)
        stop("cannot handle", "SIGILL");
    return version;
}

/* Called for each library. A line of the file is an address in hexadecimal, relative to where the library is loaded, and
 * the library's path. */
unsigned int la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie)
{
    char path[PATH_MAX], line[PATH_MAX + 32];
    FILE *file;

    (void)cookie;
    if (space != LM_ID_BASE || realpath(map->l_name, path) == NULL)
        return 0;
    file = fopen(getenv("CPUID_SITES"), "r");
    if (file == NULL)
        stop("cannot read", "CPUID_SITES");
    while (fgets(line, sizeof line, file) != NULL) {
        char *rest;
        const uintptr_t address = strtoull(line, &rest, 16);

        rest[strcspn(rest, "\n")] = 0;
        if (strcmp(rest + 1, path) == 0)
            replace((uint8_t *)map->l_addr + address, path);
    }
    fclose(file);
    return 0;
}
