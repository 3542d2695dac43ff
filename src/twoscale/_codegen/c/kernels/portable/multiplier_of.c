static int32_t multiplier_of(const requantization *to, int32_t channel)
{
    return to->multiplier[channel * to->per_channel];
}
