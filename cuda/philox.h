// The random numbers of csrc/random.h one by one, for the threads of a device: bit for bit those that
// csrc/mask.h draws sixteen at once.
#pragma once

#include "random.h"

namespace fastrnn::FASTRNN_TARGET {

// Of unit `unit` of row `row` at time `step`.
FASTRNN_HD inline std::uint32_t random_word(std::uint64_t seed, std::uint32_t stream, std::uint32_t step,
                                            std::uint32_t row, std::uint32_t unit) {
  constexpr std::uint32_t counters = 16;  // that lie next to each other, of four words each
  std::uint32_t word[4] = {unit / (4 * counters) * counters + unit % counters, row, step, stream};
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < philox_rounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{philox_multiplier0} * word[0];
    const std::uint64_t product1 = std::uint64_t{philox_multiplier1} * word[2];
    const std::uint32_t high0 = static_cast<std::uint32_t>(product0 >> 32);
    const std::uint32_t high1 = static_cast<std::uint32_t>(product1 >> 32);
    word[0] = high1 ^ word[1] ^ key0;
    word[2] = high0 ^ word[3] ^ key1;
    word[1] = static_cast<std::uint32_t>(product1);
    word[3] = static_cast<std::uint32_t>(product0);
    key0 += philox_weyl0;
    key1 += philox_weyl1;
  }
  // Chosen by comparison: an index would send the words through memory.
  const std::uint32_t which = unit / counters % 4;
  const std::uint32_t low = which & 1 ? word[1] : word[0], high = which & 1 ? word[3] : word[2];
  return which & 2 ? high : low;
}

// What one mask draws: hits with a probability.
struct Draw {
  std::uint64_t seed = 0;
  std::uint32_t stream = 0;
  std::uint32_t bound = 0;  // a word that is at most this is a hit ...
  bool possible = false;    // ... if there are any
  double probability = 0;   // 0: there is no such mask

  FASTRNN_HD bool hit(std::int64_t step, std::int64_t row, std::int64_t unit) const {
    return possible &&
           random_word(seed, stream, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(row),
                       static_cast<std::uint32_t>(unit)) <= bound;
  }
  // Of dropout: 0 with the probability, else 1 / (1 - p).
  template <class M>
  FASTRNN_HD M factor(std::int64_t step, std::int64_t row, std::int64_t unit) const {
    if (hit(step, row, unit)) return M(0);
    return probability < 1 ? static_cast<M>(1 / (1 - probability)) : M(0);
  }
};

inline Draw draw_of(std::uint64_t seed, MaskKind kind, double probability, std::int64_t layer,
                    std::int64_t direction) {
  Draw draw;
  draw.seed = seed;
  draw.stream = stream_of(kind, layer, direction);
  draw.probability = probability;
  const double most = probability * 4294967296.0 - 1;  // 2^32 words
  draw.possible = most >= 0;
  if (draw.possible) draw.bound = static_cast<std::uint32_t>(most);
  return draw;
}

}  // namespace fastrnn::FASTRNN_TARGET
