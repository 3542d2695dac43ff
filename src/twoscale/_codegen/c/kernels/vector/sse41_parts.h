#define PARTS 4 /* registers of 128 bits */
#define INT_PART __m128i
#define FLOAT_PART __m128
#define MM(name) _mm_##name
#define MM_WHOLE(name) _mm_##name##_si128
#define MUL_ADD_F(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define REPEAT(a) a
#define QUARTER(a, n) (a).at[n]
