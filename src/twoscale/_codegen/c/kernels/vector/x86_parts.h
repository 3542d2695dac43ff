/* Registers of 128 or 256 bits on x86. */
typedef __m128i v16b;

#define SET_I(value) MM(set1_epi32)(value)
#define LOAD_I(from) MM_WHOLE(loadu)((const INT_PART *)(const void *)(from))
#define STORE_I(to, a) MM_WHOLE(storeu)((INT_PART *)(void *)(to), a)
#define ADD_I(a, b) MM(add_epi32)(a, b)
#define AND_I(a, b) MM_WHOLE(and)(a, b)
#define OR_I(a, b) MM_WHOLE(or)(a, b)
#define SHIFT_I(a, bits) MM(sll_epi32)(a, _mm_cvtsi32_si128(bits))
#define SET_F(value) MM(set1_ps)(value)
#define LOAD_F(from) MM(loadu_ps)(from)
#define TO_F(a) MM(cvtepi32_ps)(a)
#define MUL_F(a, b) MM(mul_ps)(a, b)
#define DIV_F(a, b) MM(div_ps)(a, b)
#define MIN_F(a, b) MM(min_ps)(a, b)
#define MAX_F(a, b) MM(max_ps)(a, b)
#define ROUND_F(a) MM(cvtps_epi32)(a)
#define LOAD_B(from) _mm_loadu_si128((const __m128i *)(const void *)(from))
#define STORE_B(to, a) _mm_storeu_si128((__m128i *)(void *)(to), a)
#define SET_B(value) _mm_set1_epi8((char)(value))
#define MAX_B(a, b) _mm_max_epu8(a, b)

/* For tiles and pairs of products: */
#define SHUFFLE(a, order) MM(shuffle_epi8)(a, order)
#define CLAMP(a, lo, hi) MM(min_epu8)(MM(max_epu8)(a, lo), hi)
#define LOW_8(a, b) MM(unpacklo_epi8)(a, b)
#define HIGH_8(a, b) MM(unpackhi_epi8)(a, b)
#define LOW_16(a, b) MM(unpacklo_epi16)(a, b)
#define HIGH_16(a, b) MM(unpackhi_epi16)(a, b)
#define PACK_32(a, b) MM(packs_epi32)(a, b)
#define PACK_16(a, b) MM(packus_epi16)(a, b)
#define LEFT_16(a, bits) MM(slli_epi16)(a, bits)
#define RIGHT_16(a, bits) MM(srai_epi16)(a, bits)
#define DOWN_16(a, bits) MM(srl_epi16)(a, _mm_cvtsi32_si128(bits)) /* unsigned, by any number */
#define ADD_16(a, b) MM(add_epi16)(a, b)
#define UNSIGNED_RIGHT_16(a, bits) MM(srli_epi16)(a, bits)
#define MULTIPLY_16(a, b) MM(madd_epi16)(a, b)
#define MULTIPLY_8(a, b) MM(maddubs_epi16)(a, b)

/* Add four products to each lane, exactly for all weights. */
INLINE INT_PART add_products(INT_PART acc, INT_PART x, INT_PART w)
{
    const INT_PART even = AND_I(x, SET_I(0x00ff00ff)), odd = UNSIGNED_RIGHT_16(x, 8);

    acc = ADD_I(acc, MULTIPLY_16(even, RIGHT_16(LEFT_16(w, 8), 8)));
    return ADD_I(acc, MULTIPLY_16(odd, RIGHT_16(w, 8)));
}

#ifndef DOT
#define DOT(acc, x, w) add_products(acc, x, w)
#endif
