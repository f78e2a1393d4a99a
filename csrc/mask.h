// Random masks: sixteen counters of random.h's generator at once.
#pragma once

#include "kernels.h"
#include "random.h"
#include "simd.h"

namespace fastrnn::FASTRNN_TARGET {

// Sixteen 32-bit words, in registers of whatever size the target has.
struct Words {
  static constexpr int count = 16;
  using Raw __attribute__((vector_size(64))) = std::uint32_t;
  using Signed __attribute__((vector_size(64))) = std::int32_t;
  using Wide __attribute__((vector_size(64))) = std::uint64_t;
  Raw raw;
};

// High and low halves of the products of all words and a constant.
FASTRNN_INLINE void multiply_words(const Words::Raw& x, std::uint32_t factor, Words::Raw& high,
                                   Words::Raw& low) {
  const auto pairs = reinterpret_cast<Words::Wide>(x);
#if defined(__AVX512F__)
  constexpr auto all = static_cast<__mmask8>(-1);
  const __m512i f = _mm512_set1_epi64(factor);
  const auto even =
      reinterpret_cast<Words::Wide>(_mm512_maskz_mul_epu32(all, reinterpret_cast<__m512i>(pairs), f));
  const auto odd =
      reinterpret_cast<Words::Wide>(_mm512_maskz_mul_epu32(all, reinterpret_cast<__m512i>(pairs >> 32), f));
#else
  const Words::Wide even = (pairs & 0xFFFFFFFFu) * std::uint64_t{factor};
  const Words::Wide odd = (pairs >> 32) * std::uint64_t{factor};
#endif
  constexpr std::uint64_t upper = 0xFFFFFFFF00000000u;
  high = reinterpret_cast<Words::Raw>((even >> 32) | (odd & upper));
  low = reinterpret_cast<Words::Raw>((even & ~upper) | (odd << 32));
}

// The four words of sixteen counters (first + lane, row, step, stream).
FASTRNN_INLINE void philox(std::uint64_t seed, std::uint32_t first, std::uint32_t row, std::uint32_t step,
                           std::uint32_t stream, Words::Raw (&word)[4]) {
  constexpr Words::Raw lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  word[0] = lane + first;
  word[1] = Words::Raw{} + row;
  word[2] = Words::Raw{} + step;
  word[3] = Words::Raw{} + stream;
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < philox_rounds; ++round) {
    Words::Raw high0, low0, high1, low1;
    multiply_words(word[0], philox_multiplier0, high0, low0);
    multiply_words(word[2], philox_multiplier1, high1, low1);
    word[0] = high1 ^ word[1] ^ key0;
    word[2] = high0 ^ word[3] ^ key1;
    word[1] = low1;
    word[3] = low0;
    key0 += philox_weyl0;
    key1 += philox_weyl1;
  }
}

// Of two values, by words that are all ones or all zeros.
FASTRNN_INLINE void choose(const Words::Signed& where, float hit, float miss, float (&values)[Words::count]) {
  std::int32_t hit_bits, miss_bits;
  __builtin_memcpy(&hit_bits, &hit, sizeof(hit));
  __builtin_memcpy(&miss_bits, &miss, sizeof(miss));
  const Words::Signed chosen = (where & hit_bits) | (~where & miss_bits);
  __builtin_memcpy(values, &chosen, sizeof(values));
}
FASTRNN_INLINE void choose(const Words::Signed& where, double hit, double miss,
                           double (&values)[Words::count]) {
  using Halves __attribute__((vector_size(128))) = std::int64_t;
  std::int64_t hit_bits, miss_bits;
  __builtin_memcpy(&hit_bits, &hit, sizeof(hit));
  __builtin_memcpy(&miss_bits, &miss, sizeof(miss));
  const Halves wide = __builtin_convertvector(where, Halves);
  const Halves chosen = (wide & hit_bits) | (~wide & miss_bits);
  __builtin_memcpy(values, &chosen, sizeof(values));
}

template <class T>
void mask(const MaskArguments<T>& m) {
  // Of a uniform 32-bit word to be at most this, but for 2^-32.
  const double most = m.probability * 4294967296.0 - 1;
  if (most < 0) {
    for (std::int64_t i = 0; i < m.count; ++i) m.out[i] = m.miss;
    return;
  }
  const auto bound = static_cast<std::uint32_t>(most);
  const std::int64_t end = m.first + m.count;
  for (std::int64_t block = m.first / philox_block; block * philox_block < end; ++block) {
    Words::Raw word[4];
    philox(m.seed, static_cast<std::uint32_t>(block * Words::count), m.row, m.step, m.stream, word);
    for (int w = 0; w < 4; ++w) {
      const std::int64_t unit = block * philox_block + w * Words::count;
      T values[Words::count];
      choose(word[w] <= bound, m.hit, m.miss, values);
      if (unit >= m.first && unit + Words::count <= end) {
        __builtin_memcpy(m.out + (unit - m.first), values, sizeof(values));
        continue;
      }
      for (int lane = 0; lane < Words::count; ++lane) {
        if (unit + lane >= m.first && unit + lane < end) m.out[unit + lane - m.first] = values[lane];
      }
    }
  }
}

// Calls visit(at, count, z) for each vector of units, `at` counted from the first.
template <class T, class Visit>
FASTRNN_INLINE void for_each_zone(const ZoneArguments<T>& a, const Visit& visit) {
  using V = Vec<T>;
  T drawn[philox_block + V::lanes];
  const std::int64_t end = a.mask.first + a.mask.count;
  for (std::int64_t first = a.mask.first; first < end;) {
    const std::int64_t block_end = (first / philox_block + 1) * philox_block;
    const std::int64_t last = block_end < end ? block_end : end;
    if (a.training) {
      MaskArguments<T> m = a.mask;
      m.out = drawn;
      m.first = first;
      m.count = last - first;
      m.hit = T(1);
      m.miss = T(0);
      mask(m);
    }
    for (std::int64_t u = first; u < last; u += V::lanes) {
      const V z = a.training ? V::load(drawn + (u - first)) : V(static_cast<T>(a.mask.probability));
      visit(u - a.mask.first, last - u, z);
    }
    first = last;
  }
}

template <class T>
void zone(const ZoneArguments<T>& a) {
  using V = Vec<T>;
  for_each_zone(a, [&](std::int64_t at, std::int64_t count, V z) {
    const V before = V::load_up_to(a.before + at, count), state = V::load_up_to(a.state + at, count);
    // Exactly one of the two where one is chosen, -0 and NaN included.
    V zoned = z * before + (V(T(1)) - z) * state;
    if (a.training) zoned = V(z.raw > V(T(0)).raw ? before.raw : state.raw);
    zoned.store_up_to(a.state + at, count);
    if (a.copy) zoned.store_up_to(a.copy + at, count);
  });
}

template <class T>
void zone_backward(const ZoneArguments<T>& a) {
  using V = Vec<T>;
  for_each_zone(a, [&](std::int64_t at, std::int64_t count, V z) {
    V grad = V::load_up_to(a.grad + at, count);
    if (a.grad_more) grad = grad + V::load_up_to(a.grad_more + at, count);
    (z * grad).store_up_to(a.carry + at, count);
    ((V(T(1)) - z) * grad).store_up_to(a.grad + at, count);
  });
}

}  // namespace fastrnn::FASTRNN_TARGET
