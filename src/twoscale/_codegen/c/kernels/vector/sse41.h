/* Numbers in registers of 128 bits: SSE4.1. */
#define ACCUMULATORS 2 /* of four registers, of 16; the others hold weights and an activation */
#define PACKED_ACCUMULATORS ACCUMULATORS

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    __m128 zeros = _mm_setzero_ps();

    EACH zeros = _mm_add_ps(zeros, _mm_sub_ps(a.at[i], a.at[i]));
    return _mm_movemask_ps(_mm_cmpneq_ps(zeros, _mm_setzero_ps()));
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    __m128 most = _mm_setzero_ps();

    EACH most = _mm_max_ps(_mm_andnot_ps(_mm_set1_ps(-0.0f), a.at[i]), most);
    return _mm_movemask_ps(_mm_cmpgt_ps(most, _mm_set1_ps(limit)));
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    v16i v;

    from = readable(from, count, some);
    EACH
    {
        int32_t four;

        memcpy(&four, from + 4 * i, sizeof four);
        v.at[i] = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
    }
    return v;
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    store_b(to, _mm_packus_epi16(_mm_packs_epi32(a.at[0], a.at[1]), _mm_packs_epi32(a.at[2], a.at[3])), count);
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    const __m128i bytes = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    uint8_t all[52];

    EACH _mm_storeu_si128((__m128i *)(void *)(all + 12 * i), _mm_shuffle_epi8(a.at[i], bytes));
    memcpy(to, all, (size_t)(3 * (count < 16 ? count : 16)));
}

/* RNE of |numbers| < 2^31, clamped to 0..255, in the given order. */
INLINE v64b round_64(v16f a, v16f b, v16f c, v16f d)
{
    const v64b v = {{round_part(a.at[0], a.at[1], a.at[2], a.at[3]), round_part(b.at[0], b.at[1], b.at[2], b.at[3]),
                     round_part(c.at[0], c.at[1], c.at[2], c.at[3]), round_part(d.at[0], d.at[1], d.at[2], d.at[3])}};

    return v;
}
