/* Products of bytes for AVX2 and SSE4.1. vpmaddubsw multiplies bytes and adds neighbouring products in 16 bits, which
 * saturates for large weights. Where no pair of a word can saturate, in one of three arrangements of its four bytes, the
 * kernels use it; elsewhere they multiply in 16 bits with vpmaddwd, which is exact for all weights. */
#define HAS_PAIRS

/* Arrange the bytes of each lane so that neighbours do not saturate: 0, 1, 2, 3 (as they are), 0, 2, 1, 3 or 0, 3, 2, 1. */
INLINE INT_PART arranged(INT_PART a, int32_t arrangement)
{
    const __m128i second = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    const __m128i third = _mm_setr_epi8(0, 3, 2, 1, 4, 7, 6, 5, 8, 11, 10, 9, 12, 15, 14, 13);

    return arrangement == 0 ? a : SHUFFLE(a, REPEAT(arrangement == 1 ? second : third));
}

INLINE weights arranged_weights(weights w, int32_t arrangement)
{
    EACH w.at[i] = arranged(w.at[i], arrangement);
    return w;
}

/* The same as dot for weights that are arranged and do not saturate. */
INLINE v16i dot_pairs(v16i acc, word x, weights w, int32_t arrangement)
{
    const INT_PART ones = SET_I(0x00010001), bytes = arranged(x, arrangement);

    EACH acc.at[i] = ADD_I(acc.at[i], MULTIPLY_16(MULTIPLY_8(bytes, w.at[i]), ones));
    return acc;
}

/* The same for the packed weights at `w`, of `bits` bits, and the windows' words that they belong to. Products with them
 * are so small that 16 bits hold the sums of all these words. */
INLINE v16i dot_few_bits(v16i acc, const uint8_t *x, const int8_t *w, int32_t bits)
{
    const weights all = load_weights(w);
    weights sums;

    EACH sums.at[i] = SET_I(0);
    UNROLL
    for (int32_t part = 0; part < 4; part++)
        if (part < 8 / bits) {
            const word bytes = load_word(x + 4 * part);
            const weights some = unpacked(all, part, bits);

            EACH sums.at[i] = ADD_16(sums.at[i], MULTIPLY_8(bytes, some.at[i]));
        }
    EACH acc.at[i] = ADD_I(acc.at[i], MULTIPLY_16(sums.at[i], SET_I(0x00010001)));
    return acc;
}
