/* Sixteen numbers at a time, in four quarters of 128 bits: WebAssembly. A module has one of three kinds of products.
 *
 * SIMD128: exact products of 16 bits, which all browsers with SIMD have.
 *
 * RELAXED and RELAXED_SIGNED: one instruction for four products in each lane. WebAssembly defines its result for activations
 * of 7 bits. Beyond them a host may multiply unsigned or signed activations, and may saturate sums of two products. It
 * always does the same, so the caller tries which it is (NAME.mjs). RELAXED is for hosts that multiply unsigned activations
 * and add exactly, RELAXED_SIGNED for those that multiply signed ones, which are less by 128. */
typedef struct {
    v128_t at[4];
} v16i;
typedef struct {
    v128_t at[4];
} v16f;
typedef v128_t v16b;

INLINE v16i set_i(int32_t value)
{
    v16i v;

    EACH v.at[i] = wasm_i32x4_splat(value);
    return v;
}

INLINE v16i load_i(const int32_t *from)
{
    v16i v;

    EACH v.at[i] = wasm_v128_load(from + 4 * i);
    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    EACH a.at[i] = wasm_i32x4_add(a.at[i], b.at[i]);
    return a;
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    EACH all.at[i] = wasm_v128_or(all.at[i], wasm_i32x4_shl(a.at[i], (uint32_t)(8 * place)));
    return all;
}

INLINE v16f set_f(float value)
{
    v16f v;

    EACH v.at[i] = wasm_f32x4_splat(value);
    return v;
}

/* The first `count` of 16; zeros for the rest. */
INLINE v16f load_f(const float *from, int32_t count)
{
    float some[16] = {0};
    v16f v;

    if (count < 16) {
        memcpy(some, from, (size_t)count * sizeof(float));
        from = some;
    }
    EACH v.at[i] = wasm_v128_load(from + 4 * i);
    return v;
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    v128_t zeros = wasm_f32x4_splat(0.0f);

    EACH zeros = wasm_f32x4_add(zeros, wasm_f32x4_sub(a.at[i], a.at[i]));
    return wasm_v128_any_true(wasm_f32x4_ne(zeros, wasm_f32x4_splat(0.0f)));
}

INLINE v16f to_f(v16i a)
{
    v16f v;

    EACH v.at[i] = wasm_f32x4_convert_i32x4(a.at[i]);
    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    EACH a.at[i] = wasm_f32x4_mul(a.at[i], b.at[i]);
    return a;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    v128_t most = wasm_f32x4_splat(0.0f);

    EACH most = wasm_f32x4_pmax(most, wasm_f32x4_abs(a.at[i]));
    return wasm_v128_any_true(wasm_f32x4_gt(most, wasm_f32x4_splat(limit)));
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
#ifdef FOR_SIMD128
    EACH a.at[i] = wasm_f32x4_add(wasm_f32x4_mul(a.at[i], b.at[i]), c.at[i]);
#else
    EACH a.at[i] = wasm_f32x4_relaxed_madd(a.at[i], b.at[i], c.at[i]);
#endif
    return a;
}

INLINE v16f divide(v16f a, v16f b)
{
    EACH a.at[i] = wasm_f32x4_div(a.at[i], b.at[i]);
    return a;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    EACH a.at[i] = wasm_f32x4_pmin(wasm_f32x4_pmax(a.at[i], lo.at[i]), hi.at[i]);
    return a;
}

/* RNE of |a| < 2^22: 1.5 * 2^23 is added, whose last bit is 1, and its bits are subtracted. */
INLINE v128_t rounded(v128_t a)
{
    const v128_t large = wasm_f32x4_splat(12582912.0f);

    return wasm_i32x4_sub(wasm_f32x4_add(a, large), large);
}

INLINE v16i round_f(v16f a)
{
    v16i v;

    EACH v.at[i] = rounded(a.at[i]);
    return v;
}

INLINE v16b load_b(const uint8_t *from)
{
    return wasm_v128_load(from);
}

INLINE v16b set_b(uint8_t value)
{
    return wasm_u8x16_splat(value);
}

/* The first `count` of 16 bytes. */
INLINE void store_b(uint8_t *to, v16b a, int32_t count)
{
    uint8_t bytes[16];

    if (count >= 16) {
        wasm_v128_store(to, a);
    } else {
        wasm_v128_store(bytes, a);
        memcpy(to, bytes, (size_t)count);
    }
}

INLINE v16b max_b(v16b a, v16b b)
{
    return wasm_u8x16_max(a, b);
}

INLINE v16b clamp_b(v16b a, v16b lo, v16b hi)
{
    return wasm_u8x16_min(wasm_u8x16_max(a, lo), hi);
}

INLINE v128_t four_i(const int32_t *from)
{
    return wasm_v128_load(from);
}

INLINE v128_t four_f(const float *from)
{
    return wasm_v128_load(from);
}

/* Weights of four taps of four channels. */
INLINE v128_t tap_weights(const int8_t *from)
{
    return wasm_v128_load(from);
}

#define LOW_BYTES(a, b) wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH_BYTES(a, b) wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

typedef struct {
    v16b at[4];
} interleaved;

/* Sixteen bytes of each of four places, `step` bytes apart, side by side. */
INLINE interleaved interleave(const uint8_t *from, int32_t step)
{
    const v128_t a = wasm_v128_load(from), b = wasm_v128_load(from + step);
    const v128_t c = wasm_v128_load(from + 2 * step), d = wasm_v128_load(from + 3 * step);
    const v128_t ab_lo = LOW_BYTES(a, b), ab_hi = HIGH_BYTES(a, b), cd_lo = LOW_BYTES(c, d), cd_hi = HIGH_BYTES(c, d);
    const interleaved all = {{
        wasm_i16x8_shuffle(ab_lo, cd_lo, 0, 8, 1, 9, 2, 10, 3, 11),
        wasm_i16x8_shuffle(ab_lo, cd_lo, 4, 12, 5, 13, 6, 14, 7, 15),
        wasm_i16x8_shuffle(ab_hi, cd_hi, 0, 8, 1, 9, 2, 10, 3, 11),
        wasm_i16x8_shuffle(ab_hi, cd_hi, 4, 12, 5, 13, 6, 14, 7, 15),
    }};

    return all;
}

#undef LOW_BYTES
#undef HIGH_BYTES

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    v128_t bytes, lo, hi;
    v16i v;

    if (count < 16) {
        memcpy(some, from, (size_t)count);
        from = some;
    }
    bytes = wasm_v128_load(from);
    lo = wasm_u16x8_extend_low_u8x16(bytes);
    hi = wasm_u16x8_extend_high_u8x16(bytes);
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
    const v128_t lo = wasm_f32x4_splat(0.0f), hi = wasm_f32x4_splat(255.0f);
    v16i v;

    EACH v.at[i] = rounded(wasm_f32x4_pmin(wasm_f32x4_pmax(a.at[i], lo), hi));
    return saturated(v);
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    store_b(to, saturated(a), count);
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    int32_t numbers[16];

    EACH wasm_v128_store(numbers + 4 * i, a.at[i]);
    memcpy(to, numbers, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
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
#define EVEN_WEIGHTS(w) wasm_i16x8_shr(wasm_i16x8_shl(w, 8), 8)
#define ODD_WEIGHTS(w) wasm_i16x8_shr(w, 8)

/* Add the products of one word, `place` bytes after `offset`. */
#define ADD_WORD(place) \
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
            const v128_t even_w = EVEN_WEIGHTS(four), odd_w = ODD_WEIGHTS(four); \
            EACH_PIXEL acc[n].at[i] = wasm_i32x4_add(acc[n].at[i], wasm_i32x4_dot_i16x8(even[n], even_w)); \
            EACH_PIXEL acc[n].at[i] = wasm_i32x4_add(acc[n].at[i], wasm_i32x4_dot_i16x8(odd[n], odd_w)); \
        } \
        w += at->stride; \
    }

/* Add four products of taps to each lane. */
INLINE v128_t add_taps(v128_t acc, activations x, v128_t w)
{
    acc = wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(EVEN_BYTES(x), EVEN_WEIGHTS(w)));
    return wasm_i32x4_add(acc, wasm_i32x4_dot_i16x8(ODD_BYTES(x), ODD_WEIGHTS(w)));
}

#else
#ifndef RELAXED_DOT
#define RELAXED_DOT wasm_i32x4_relaxed_dot_i8x16_i7x16_add
#endif

/* Add the products of one word, `place` bytes after `offset`, to half of the channels. */
#define ADD_WORD(place) \
    { \
        const v128_t w0 = wasm_v128_load(w), w1 = wasm_v128_load(w + 16); \
        EACH_PIXEL \
        { \
            const activations x = activations_of(wasm_v128_load32_splat(from[n] + offset + place)); \
            acc[n].at[half] = RELAXED_DOT(w0, x, acc[n].at[half]); \
            acc[n].at[half + 1] = RELAXED_DOT(w1, x, acc[n].at[half + 1]); \
        } \
        w += at->stride; \
    }

/* Add four products of taps to each lane. */
INLINE v128_t add_taps(v128_t acc, activations x, v128_t w)
{
    return RELAXED_DOT(w, x, acc);
}

#endif

/* Add the products of 1 or PIXELS windows with the weights of 16 channels, or of half of them. */
INLINE void add_half(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels, int32_t half)
{
    (void)half;
    for (int32_t run = 0; run < at->runs; run++) {
        ptrdiff_t offset = at->start[run * at->step];
        int32_t words = at->words;

        for (; words >= 2; words -= 2, offset += 8) {
            ADD_WORD(0)
            ADD_WORD(4)
        }
        if (words > 0)
            ADD_WORD(0)
    }
}

INLINE void add_windows(v16i *acc, const window *at, const uint8_t *const *from, const int8_t *w, int32_t pixels)
{
    add_half(acc, at, from, w, pixels, 0);
#ifndef FOR_SIMD128
    add_half(acc, at, from, w + 32, pixels, 2);
#endif
}
