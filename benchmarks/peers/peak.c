/* How many multiply-adds of 8-bit integers this processor does in a second: one instruction, again and again, on
 * registers, into 24 accumulators (12 without AVX-512, 6 with AMX), so that its latency does not count. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { ACCUMULATORS = 24, ROUNDS = 1000, MOST_THREADS = 64 };

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Written as the processor runs them, so that no compiler spills, folds or reorders them. What the registers hold
 * does not matter: integer instructions take the same time for any values. */
#define VNNI(n) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #n "\n\t"
#define VNNI256(n) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #n "\n\t"
#define MADDUBS(n) \
    "vpmaddubsw %%ymm15, %%ymm14, %%ymm13\n\tvpmaddwd %%ymm13, %%ymm12, %%ymm13\n\t" \
    "vpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n\t"

__attribute__((target("avx512f"))) static void vnni512(void)
{
    for (int round = 0; round < ROUNDS; round++)
        __asm__ volatile(VNNI(0) VNNI(1) VNNI(2) VNNI(3) VNNI(4) VNNI(5) VNNI(6) VNNI(7) VNNI(8) VNNI(9) VNNI(10)
                         VNNI(11) VNNI(12) VNNI(13) VNNI(14) VNNI(15) VNNI(16) VNNI(17) VNNI(18) VNNI(19) VNNI(20)
                         VNNI(21) VNNI(22) VNNI(23) ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                         "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16",
                         "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23");
}

__attribute__((target("avx2"))) static void vnni256(void)
{
    for (int round = 0; round < 2 * ROUNDS; round++)
        __asm__ volatile(VNNI256(0) VNNI256(1) VNNI256(2) VNNI256(3) VNNI256(4) VNNI256(5) VNNI256(6) VNNI256(7)
                         VNNI256(8) VNNI256(9) VNNI256(10) VNNI256(11) ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
                         "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
}

__attribute__((target("avx2"))) static void maddubs256(void)
{
    for (int round = 0; round < 2 * ROUNDS; round++)
        __asm__ volatile(MADDUBS(0) MADDUBS(1) MADDUBS(2) MADDUBS(3) MADDUBS(4) MADDUBS(5) MADDUBS(6) MADDUBS(7)
                         MADDUBS(8) MADDUBS(9) MADDUBS(10) MADDUBS(11) ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
                         "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13");
}

#define TILES(n) "tdpbusd %%tmm7, %%tmm6, %%tmm" #n "\n\t"

/* Tiles of 16 rows of 64 bytes. They are set up again for each thread, and given back, since threads begin without. */
static void amx(void)
{
    static const struct {
        uint8_t palette, zeros[15];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {1, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

    __asm__ volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory");
    for (int round = 0; round < ROUNDS / 6; round++)
        __asm__ volatile(TILES(0) TILES(1) TILES(2) TILES(3) TILES(4) TILES(5)::);
    __asm__ volatile("tilerelease" ::);
}

/* Whether the processor has AMX for bytes and Linux permits it. */
static int has_amx(void)
{
    uint32_t a = 7, b, c = 0, d;

    if (!__builtin_cpu_supports("avx512vnni"))
        return 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (d >> 24 & 3) == 3 && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

typedef struct {
    const char *name;
    void (*run)(void);
    int64_t macs; /* of one run */
} instruction;

/* The fastest that this CPU has. */
static instruction best(void)
{
    const int64_t count = (int64_t)ROUNDS * ACCUMULATORS;

    if (has_amx())
        return (instruction){"tdpbusd, 16 rows of 512 bits", amx, (int64_t)(ROUNDS / 6) * 6 * 16 * 16 * 64};
    if (__builtin_cpu_supports("avx512vnni"))
        return (instruction){"vpdpbusd, 512 bits", vnni512, 64 * count};
    if (__builtin_cpu_supports("avxvnni"))
        return (instruction){"vpdpbusd, 256 bits", vnni256, 32 * count};
    return (instruction){"vpmaddubsw, vpmaddwd and vpaddd, 256 bits", maddubs256, 32 * count};
}

const char *peak_instruction(void)
{
    return best().name;
}

struct work {
    double until;
    double finished;
    int64_t macs;
};

static void *run(void *argument)
{
    struct work *work = argument;
    const instruction chosen = best();

    do {
        chosen.run();
        work->macs += chosen.macs;
        work->finished = now();
    } while (work->finished < work->until);
    return 0;
}

double peak_gmacs(int threads, double seconds)
{
    pthread_t started[MOST_THREADS];
    struct work work[MOST_THREADS];
    double begin, gmacs = 0;

    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    begin = now();
    for (int i = 0; i < threads; i++) {
        work[i] = (struct work){begin + seconds, begin, 0};
        if (i == 0 || pthread_create(&started[i], 0, run, &work[i]) != 0)
            started[i] = pthread_self();
    }
    run(&work[0]);
    for (int i = 1; i < threads; i++)
        if (!pthread_equal(started[i], pthread_self()))
            pthread_join(started[i], 0);
    for (int i = 0; i < threads; i++)
        if (work[i].macs)
            gmacs += 1e-9 * (double)work[i].macs / (work[i].finished - begin);
    return gmacs;
}
