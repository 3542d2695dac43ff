/* What all AArch64 processors have. Products are in the headers of the levels. */

/* The weights of word `part` of those that are packed with `bits` bits each. */
INLINE int8x16_t unpacked(int8x16_t w, int32_t part, int32_t bits)
{
    if (bits == 8)
        return w;
    return vshlq_s8(vshlq_s8(w, vdupq_n_s8((int8_t)(8 - bits * (part + 1)))), vdupq_n_s8((int8_t)(bits - 8)));
}

/* Bytes for the unpacked weights of 16 channels, which are unpacked once for all pixels; those of larger windows are unpacked
 * whenever they are loaded. */
#ifndef FOR_I8MM
#define UNPACKED_BYTES 40960
#endif

/* Unpack the weights of 16 channels, word by word. */
INLINE void unpack_words(int8_t *to, const window *at, const int8_t *w, int32_t bits)
{
    for (int32_t k = at->runs * at->words; k > 0; k--, w += at->stride) {
        const int8x16x4_t all = vld1q_s8_x4(w);

        for (int32_t part = 0; part < 8 / bits; part++, to += 64)
            EACH vst1q_s8(to + 16 * i, unpacked(all.val[i], part, bits));
    }
}

/* Whether there is a NaN or an infinity. */
INLINE int not_finite(v16f a)
{
    uint32x4_t fine = vdupq_n_u32(UINT32_MAX);

    EACH fine = vandq_u32(fine, vcaleq_f32(a.at[i], vdupq_n_f32(FLT_MAX)));
    return vminvq_u32(fine) == 0;
}

/* Whether any |a| is above the limit. */
INLINE int any_beyond(v16f a, float limit)
{
    float32x4_t most = vdupq_n_f32(0.0f);

    EACH most = vmaxq_f32(most, vabsq_f32(a.at[i]));
    return vmaxvq_f32(most) > limit;
}

/* The first `count` of 16 bytes as numbers; the others are undefined. */
INLINE v16i load_u8(const uint8_t *from, int32_t count)
{
    uint8_t some[16] = {0};
    const v16b bytes = load_b(readable(from, count, some));
    const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_high_u8(bytes);
    v16i v;

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
