#define PARTS 2 /* registers of 256 bits */
#define INT_PART __m256i
#define FLOAT_PART __m256
#define MM(name) _mm256_##name
#define MM_WHOLE(name) _mm256_##name##_si256
#define MUL_ADD_F(a, b, c) _mm256_fmadd_ps(a, b, c)
#define REPEAT(a) _mm256_broadcastsi128_si256(a) /* 16 bytes, in all of a register */
#define QUARTER(a, n) \
    ((n) % 2 == 0 ? _mm256_castsi256_si128((a).at[(n) / 2]) : _mm256_extracti128_si256((a).at[(n) / 2], 1))

#ifdef FOR_AVXVNNI
#define STEP_ROWS 3 /* of depthwise convolutions */
#define DOT(acc, x, w) _mm256_dpbusd_avx_epi32(acc, x, w) /* four to each lane */
#endif
