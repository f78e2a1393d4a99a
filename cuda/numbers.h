// The short numbers of GPUs, for host and device: 16-bit floats as arrays store them, and the float32 of 10
// bits that tensor cores multiply.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "activations.h"

namespace fastrnn {

template <class To, class From>
FASTRNN_HD inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// To nearest, ties to even; NaN stays NaN.
FASTRNN_HD inline std::uint16_t bfloat16_bits(float x) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const auto bits = bits_as<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#endif
}
FASTRNN_HD inline float from_bfloat16(std::uint16_t bits) {
  return bits_as<float>(static_cast<std::uint32_t>(bits) << 16);
}

FASTRNN_HD inline std::uint16_t half_bits(float x) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  const auto bits = bits_as<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000, positive = bits & 0x7FFFFFFF;
  std::uint32_t half = 0x7E00;
  if (positive <= 0x7F800000) {
    if (positive >= 0x477FF000) {  // rounds to 2^16
      half = 0x7C00;
    } else if (positive < 0x38800000) {  // below 2^-14: adding 2^-1 leaves multiples of 2^-24
      half = bits_as<std::uint32_t>(bits_as<float>(positive) + 0.5f) - 0x3F000000;
    } else {
      half = (positive - 0x38000000 + 0xFFF + (positive >> 13 & 1)) >> 13;
    }
  }
  return static_cast<std::uint16_t>(sign | half);
#endif
}
FASTRNN_HD inline float from_half(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#else
  const std::uint32_t positive = bits & 0x7FFF, sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  float x;
  if (positive >= 0x7C00) {
    x = bits_as<float>(positive << 13 | 0x7F800000);
  } else if (positive < 0x400) {
    x = static_cast<float>(positive) * 0x1p-24f;
  } else {
    x = bits_as<float>((positive << 13) + 0x38000000);
  }
  return bits_as<float>(bits_as<std::uint32_t>(x) | sign);
#endif
}

// A float with a mantissa of 10 bits: to nearest, ties away from zero.
FASTRNN_HD inline std::uint32_t tf32_bits(float x) {
#if defined(__CUDA_ARCH__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  const auto bits = bits_as<std::uint32_t>(x);
  if ((bits & 0x7F800000) == 0x7F800000) return bits;
  return (bits + 0x1000) & ~0x1FFFu;
#endif
}

// How arrays of 16-bit floats are stored.
struct Bfloat16 {
  std::uint16_t bits;
  Bfloat16() = default;
  FASTRNN_HD explicit Bfloat16(float x) : bits(bfloat16_bits(x)) {}
  FASTRNN_HD explicit operator float() const { return from_bfloat16(bits); }
};
struct Half {
  std::uint16_t bits;
  Half() = default;
  FASTRNN_HD explicit Half(float x) : bits(half_bits(x)) {}
  FASTRNN_HD explicit operator float() const { return from_half(bits); }
};

// In what the math of arrays of T is done.
template <class T>
using MathOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace fastrnn
