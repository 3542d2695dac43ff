/* WebAssembly. A module has one of three kinds of products.
 *
 * SIMD128: exact products of 16 bits, which all browsers with SIMD have.
 *
 * RELAXED and RELAXED_SIGNED: one instruction for four products in each lane. WebAssembly defines its result for activations
 * of 7 bits. Beyond them a host may multiply unsigned or signed activations, and may saturate sums of two products. It
 * always does the same, so the caller tries which it is (NAME.mjs). RELAXED is for hosts that multiply unsigned activations
 * and add exactly, RELAXED_SIGNED for those that multiply signed ones, which are less by 128. */

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    v128_t zeros = wasm_f32x4_splat(0.0f);

    EACH zeros = wasm_f32x4_add(zeros, wasm_f32x4_sub(a.at[i], a.at[i]));
    return wasm_v128_any_true(wasm_f32x4_ne(zeros, wasm_f32x4_splat(0.0f)));
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    v128_t most = wasm_f32x4_splat(0.0f);

    EACH most = wasm_f32x4_pmax(most, wasm_f32x4_abs(a.at[i]));
    return wasm_v128_any_true(wasm_f32x4_gt(most, wasm_f32x4_splat(limit)));
}


/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    const v16b bytes = load_b(readable(from, count, some));
    const v128_t lo = wasm_u16x8_extend_low_u8x16(bytes), hi = wasm_u16x8_extend_high_u8x16(bytes);
    v16i v;

    v.at[0] = wasm_u32x4_extend_low_u16x8(lo);
    v.at[1] = wasm_u32x4_extend_high_u16x8(lo);
    v.at[2] = wasm_u32x4_extend_low_u16x8(hi);
    v.at[3] = wasm_u32x4_extend_high_u16x8(hi);
    return v;
}

/* Clamped to 0..255. */
INLINE v16b saturated(v16i a)
{
    const v128_t lo = wasm_i16x8_narrow_i32x4(a.at[0], a.at[1]), hi = wasm_i16x8_narrow_i32x4(a.at[2], a.at[3]);

    return wasm_u8x16_narrow_i16x8(lo, hi);
}

/* RNE of |numbers| < 2^31, clamped to 0..255. */
INLINE v16b rounded_bytes(v16f a)
{
    return saturated(round_f(clamp_f(a, set_f(0.0f), set_f(255.0f))));
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    store_b(to, saturated(a), count);
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    uint8_t all[52];

    EACH wasm_v128_store(all + 12 * i, wasm_i8x16_shuffle(a.at[i], a.at[i], 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 3, 3, 3));
    memcpy(to, all, (size_t)(3 * (count < 16 ? count : 16)));
}

#ifdef FOR_SIMD128
#define PIXELS 2 /* of a tile */
#else
#define PIXELS 6 /* of a tile, whose channels are computed in halves: 12 accumulators of 16 registers */
#endif

typedef v128_t activations;

#ifdef FOR_RELAXED_SIGNED
INLINE activations activations_of(v16b bytes)
{
    return wasm_v128_xor(bytes, wasm_u8x16_splat(128));
}
#else
#define UNSIGNED_ACTIVATIONS

INLINE activations activations_of(v16b bytes)
{
    return bytes;
}
#endif

#ifdef FOR_SIMD128
/* The first and third of four bytes, and the others, in 16 bits. */
#define EVEN_BYTES(x) wasm_v128_and(x, wasm_i16x8_splat(255))
#define ODD_BYTES(x) wasm_u16x8_shr(x, 8)
/* The same of the weights of word `part` of those that are packed with `bits` bits each. */
#define EVEN_WEIGHTS(w, part, bits) wasm_i16x8_shr(wasm_i16x8_shl(w, 16 - (bits) * ((part) + 1)), 16 - (bits))
#define ODD_WEIGHTS(w, part, bits) wasm_i16x8_shr(wasm_i16x8_shl(w, 8 - (bits) * ((part) + 1)), 16 - (bits))

/* Add the products of one word, `place` bytes after `offset`, with the weights of word `part` of those at `w`. */
#define ADD_PART(place, part) \
    { \
        v128_t even[PIXELS], odd[PIXELS]; \
        EACH_PIXEL \
        { \
            const v128_t x = wasm_v128_load32_splat(from[n] + offset + place); \
            even[n] = EVEN_BYTES(x); \
            odd[n] = ODD_BYTES(x); \
        } \
        EACH \
        { \
            const v128_t four = wasm_v128_load(w + 16 * i); \
            const v128_t even_w = EVEN_WEIGHTS(four, part, bits), odd_w = ODD_WEIGHTS(four, part, bits); \
            EACH_PIXEL acc[n].at[i] = wasm_i32x4_add(acc[n].at[i], wasm_i32x4_dot_i16x8(even[n], even_w)); \
            EACH_PIXEL acc[n].at[i] = wasm_i32x4_add(acc[n].at[i], wasm_i32x4_dot_i16x8(odd[n], odd_w)); \
        } \
    }

/* Add four products of taps to each lane. */
INLINE v128_t add_taps(v128_t acc, activations x, v128_t w)
{
    acc = wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(EVEN_BYTES(x), EVEN_WEIGHTS(w, 0, 8)));
    return wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(ODD_BYTES(x), ODD_WEIGHTS(w, 0, 8)));
}

#else
#ifndef RELAXED_DOT
#define RELAXED_DOT wasm_i32x4_relaxed_dot_i8x16_i7x16_add
#endif

/* The weights of word `part` of those that are packed with `bits` bits each. */
INLINE v128_t unpacked(v128_t w, int32_t part, int32_t bits)
{
    const v128_t signs = bits == 4 ? wasm_i8x16_const(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
                                   : wasm_i8x16_const(0, 1, -2, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

    if (bits == 8)
        return w;
    w = wasm_v128_and(wasm_u16x8_shr(w, (uint32_t)(part * bits)), wasm_i8x16_splat(bits == 4 ? 15 : 3));
    return wasm_i8x16_swizzle(signs, w);
}

/* Add the products of one word, `place` bytes after `offset`, with the weights of word `part` of those at `w`, to half of the
 * channels. */
#define ADD_PART(place, part) \
    { \
        const v128_t w0 = unpacked(wasm_v128_load(w), part, bits), w1 = unpacked(wasm_v128_load(w + 16), part, bits); \
        EACH_PIXEL \
        { \
            const activations x = activations_of(wasm_v128_load32_splat(from[n] + offset + place)); \
            acc[n].at[half] = RELAXED_DOT(w0, x, acc[n].at[half]); \
            acc[n].at[half + 1] = RELAXED_DOT(w1, x, acc[n].at[half + 1]); \
        } \
    }

/* Add four products of taps to each lane. */
INLINE v128_t add_taps(v128_t acc, activations x, v128_t w)
{
    return RELAXED_DOT(w, x, acc);
}

#endif

#define ADD_WORD(place) \
    { \
        ADD_PART(place, 0) \
        w += at->stride; \
    }

/* Add the products of 1 or PIXELS windows with the weights of 16 channels, or of half of them. */
INLINE void add_half(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels, int32_t bits,
                     int32_t half)
{
    (void)half;
    for (int32_t run = 0; run < at->runs; run++) {
        ptrdiff_t offset = at->start[run * at->step];
        int32_t words = at->words;

        for (; bits < 8 && words > 0; words--, offset += 32 / bits) {
            ADD_PART(0, 0)
            ADD_PART(4, 1)
            if (bits == 2) {
                ADD_PART(8, 2)
                ADD_PART(12, 3)
            }
            w += at->stride;
        }
        for (; words >= 2; words -= 2, offset += 8) {
            ADD_WORD(0)
            ADD_WORD(4)
        }
        if (words > 0)
            ADD_WORD(0)
    }
}

INLINE void add_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels,
                        int32_t bits)
{
    add_half(acc, at, from, w, pixels, bits, 0);
#ifndef FOR_SIMD128
    add_half(acc, at, from, w + 32, pixels, bits, 2);
#endif
}
