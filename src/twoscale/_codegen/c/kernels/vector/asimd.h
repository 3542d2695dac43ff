/* Sixteen numbers at a time, in four quarters of 128 bits: what all AArch64 processors have. Products are in the headers of
 * the levels. */
typedef struct {
    int32x4_t at[4];
} v16i;
typedef struct {
    float32x4_t at[4];
} v16f;
typedef uint8x16_t v16b;

INLINE v16i set_i(int32_t value)
{
    v16i v;

    EACH v.at[i] = vdupq_n_s32(value);
    return v;
}

INLINE v16i load_i(const int32_t *from)
{
    v16i v;

    EACH v.at[i] = vld1q_s32(from + 4 * i);
    return v;
}

INLINE v16i add_i(v16i a, v16i b)
{
    EACH a.at[i] = vaddq_s32(a.at[i], b.at[i]);
    return a;
}

/* Put numbers in 0..255 into byte `place` of each number of `all`. */
INLINE v16i put_byte(v16i all, v16i a, int32_t place)
{
    EACH all.at[i] = vorrq_s32(all.at[i], vshlq_s32(a.at[i], vdupq_n_s32(8 * place)));
    return all;
}

INLINE v16f set_f(float value)
{
    v16f v;

    EACH v.at[i] = vdupq_n_f32(value);
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
    EACH v.at[i] = vld1q_f32(from + 4 * i);
    return v;
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    uint32x4_t fine = vdupq_n_u32(UINT32_MAX);

    EACH fine = vandq_u32(fine, vcaleq_f32(a.at[i], vdupq_n_f32(FLT_MAX)));
    return vminvq_u32(fine) == 0;
}

INLINE v16f to_f(v16i a)
{
    v16f v;

    EACH v.at[i] = vcvtq_f32_s32(a.at[i]);
    return v;
}

INLINE v16f mul(v16f a, v16f b)
{
    EACH a.at[i] = vmulq_f32(a.at[i], b.at[i]);
    return a;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    float32x4_t most = vdupq_n_f32(0.0f);

    EACH most = vmaxq_f32(most, vabsq_f32(a.at[i]));
    return vmaxvq_f32(most) > limit;
}

/* a * b + c, fused or not: used where both are correct. */
INLINE v16f mul_add(v16f a, v16f b, v16f c)
{
    EACH a.at[i] = vfmaq_f32(c.at[i], a.at[i], b.at[i]);
    return a;
}

INLINE v16f divide(v16f a, v16f b)
{
    EACH a.at[i] = vdivq_f32(a.at[i], b.at[i]);
    return a;
}

INLINE v16f clamp_f(v16f a, v16f lo, v16f hi)
{
    EACH a.at[i] = vminq_f32(vmaxq_f32(a.at[i], lo.at[i]), hi.at[i]);
    return a;
}

/* RNE of |a| < 2^31. */
INLINE v16i round_f(v16f a)
{
    v16i v;

    EACH v.at[i] = vcvtnq_s32_f32(a.at[i]);
    return v;
}

INLINE v16b load_b(const uint8_t *from)
{
    return vld1q_u8(from);
}

INLINE v16b set_b(uint8_t value)
{
    return vdupq_n_u8(value);
}

/* The first `count` of 16 bytes. */
INLINE void store_b(uint8_t *to, v16b a, int32_t count)
{
    uint8_t bytes[16];

    if (count >= 16) {
        vst1q_u8(to, a);
    } else {
        vst1q_u8(bytes, a);
        memcpy(to, bytes, (size_t)count);
    }
}

INLINE v16b max_b(v16b a, v16b b)
{
    return vmaxq_u8(a, b);
}

INLINE v16b clamp_b(v16b a, v16b lo, v16b hi)
{
    return vminq_u8(vmaxq_u8(a, lo), hi);
}

INLINE int32x4_t four_i(const int32_t *from)
{
    return vld1q_s32(from);
}

INLINE float32x4_t four_f(const float *from)
{
    return vld1q_f32(from);
}

/* Weights of four taps of four channels. */
INLINE int8x16_t tap_weights(const int8_t *from)
{
    return vld1q_s8(from);
}

typedef struct {
    v16b at[4];
} interleaved;

/* Sixteen bytes of each of four places, `step` bytes apart, side by side. */
INLINE interleaved interleave(const uint8_t *from, int32_t step)
{
    const uint8x16_t a = vld1q_u8(from), b = vld1q_u8(from + step);
    const uint8x16_t c = vld1q_u8(from + 2 * step), d = vld1q_u8(from + 3 * step);
    const uint16x8_t ab_lo = vreinterpretq_u16_u8(vzip1q_u8(a, b)), ab_hi = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t cd_lo = vreinterpretq_u16_u8(vzip1q_u8(c, d)), cd_hi = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    const interleaved all = {{
        vreinterpretq_u8_u16(vzip1q_u16(ab_lo, cd_lo)),
        vreinterpretq_u8_u16(vzip2q_u16(ab_lo, cd_lo)),
        vreinterpretq_u8_u16(vzip1q_u16(ab_hi, cd_hi)),
        vreinterpretq_u8_u16(vzip2q_u16(ab_hi, cd_hi)),
    }};

    return all;
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    uint8x16_t bytes;
    uint16x8_t lo, hi;
    v16i v;

    if (count < 16) {
        memcpy(some, from, (size_t)count);
        from = some;
    }
    bytes = vld1q_u8(from);
    lo = vmovl_u8(vget_low_u8(bytes));
    hi = vmovl_high_u8(bytes);
    v.at[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo)));
    v.at[1] = vreinterpretq_s32_u32(vmovl_high_u16(lo));
    v.at[2] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi)));
    v.at[3] = vreinterpretq_s32_u32(vmovl_high_u16(hi));
    return v;
}

/* Clamped to 0..255. */
INLINE v16b saturated(v16i a)
{
    const int16x8_t lo = vqmovn_high_s32(vqmovn_s32(a.at[0]), a.at[1]);
    const int16x8_t hi = vqmovn_high_s32(vqmovn_s32(a.at[2]), a.at[3]);

    return vqmovun_high_s16(vqmovun_s16(lo), hi);
}

/* RNE of |numbers| < 2^31, clamped to 0..255. */
INLINE v16b rounded_bytes(v16f a)
{
    return saturated(round_f(a));
}

/* The first `count` of 16 numbers in 0..255 as bytes. */
INLINE void store_u8(uint8_t *to, v16i a, int32_t count)
{
    store_b(to, saturated(a), count);
}

INLINE void store_i(uint8_t *to, v16i a, int32_t count)
{
    int32_t numbers[16];

    EACH vst1q_s32(numbers + 4 * i, a.at[i]);
    memcpy(to, numbers, (size_t)(count < 16 ? count : 16) * sizeof(int32_t));
}

/* Store three bytes of each of the first `count` of 16 numbers, side by side. */
INLINE void store_threes(uint8_t *to, v16i a, int32_t count)
{
    static const uint8_t order[16] = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 255, 255, 255, 255};
    uint8_t some[52];
    uint8_t *const all = count < 16 ? some : to;
    const v16b threes = vld1q_u8(order);
    v16b last;
    uint32_t end;

    UNROLL
    for (int32_t i = 0; i < 3; i++)
        vst1q_u8(all + 12 * i, vqtbl1q_u8(vreinterpretq_u8_s32(a.at[i]), threes));
    last = vqtbl1q_u8(vreinterpretq_u8_s32(a.at[3]), threes);
    vst1_u8(all + 36, vget_low_u8(last));
    end = vgetq_lane_u32(vreinterpretq_u32_u8(last), 2);
    memcpy(all + 44, &end, sizeof end);
    if (count < 16)
        memcpy(to, some, (size_t)(3 * count));
}

#define HAS_LOOK_UP

typedef struct {
    uint8x16x4_t at[4];
} table256; /* a function of a byte */

INLINE table256 load_table(const uint8_t *from)
{
    table256 table;

    EACH
    {
        UNROLL
        for (int32_t k = 0; k < 4; k++)
            table.at[i].val[k] = vld1q_u8(from + 64 * i + 16 * k);
    }
    return table;
}

INLINE void look_up(table256 table, const uint8_t *x, uint8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; i += 16) {
        v16b at = vld1q_u8(x + i), found = vqtbl4q_u8(table.at[0], at);

        UNROLL
        for (int32_t k = 1; k < 4; k++) { /* what is beyond a quarter of the table keeps its value */
            at = vsubq_u8(at, vdupq_n_u8(64));
            found = vqtbx4q_u8(found, table.at[k], at);
        }
        store_b(y + i, found, count - i);
    }
}

/* Loads stay on their side of it. Without this, compilers load the weights of the next words early and run out of registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory");
