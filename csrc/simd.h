// Vec<T>: one SIMD register of T in GCC/Clang vector extensions, plus the few intrinsics that those
// cannot express. Compiled once per target inside the target's namespace. No STL in here.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "activations.h"

#define FASTRNN_INLINE inline __attribute__((always_inline))

namespace fastrnn::FASTRNN_TARGET {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 32;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

// The registers as non-dependent types: the attribute is lost on a typedef that depends on T.
template <class T>
struct Register;

template <>
struct Register<float> {
  typedef float Raw __attribute__((vector_size(vector_bytes)));
  typedef std::int32_t RawInteger __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};

template <>
struct Register<double> {
  typedef double Raw __attribute__((vector_size(vector_bytes)));
  typedef std::int64_t RawInteger __attribute__((vector_size(vector_bytes)));
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

template <class T>
struct Vec {
  using Raw = typename Register<T>::Raw;
  using RawInteger = typename Register<T>::RawInteger;
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));

  Raw raw;

  Vec() = default;
  FASTRNN_INLINE Vec(Raw r) : raw(r) {}
  FASTRNN_INLINE explicit Vec(T x) : raw(x - Raw{}) {}

  static FASTRNN_INLINE Vec load(const T* p) {
    Vec v;
    __builtin_memcpy(&v.raw, p, sizeof(Raw));
    return v;
  }
  FASTRNN_INLINE void store(T* p) const { __builtin_memcpy(p, &raw, sizeof(Raw)); }

  // Only the first `count` lanes are written.
  FASTRNN_INLINE void store_partial(T* p, int count) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), raw);
    } else {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1u), raw);
    }
#else
    __builtin_memcpy(p, &raw, static_cast<unsigned>(count) * sizeof(T));
#endif
  }

  friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
  friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
  friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
  friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
  friend FASTRNN_INLINE Vec operator-(Vec a) { return -a.raw; }
};

template <class T>
struct LaneOf<Vec<T>> {
  using type = T;
};

#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(__FMA__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.raw, b.raw, c.raw));
}
#elif defined(__aarch64__)
FASTRNN_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.raw, a.raw, b.raw));
}
FASTRNN_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.raw, a.raw, b.raw));
}
#else
template <class T>
FASTRNN_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
#endif

template <class T>
FASTRNN_INLINE Vec<T> select(typename Vec<T>::RawInteger mask, Vec<T> a, Vec<T> b) {
  return Vec<T>(mask ? a.raw : b.raw);
}

template <class T>
FASTRNN_INLINE Vec<T> maximum(Vec<T> bound, Vec<T> x) {
  return select<T>(x.raw < bound.raw, bound, x);
}

template <class T>
FASTRNN_INLINE Vec<T> minimum(Vec<T> bound, Vec<T> x) {
  return select<T>(x.raw > bound.raw, bound, x);
}

template <class T>
FASTRNN_INLINE Vec<T> select_negative(Vec<T> x, Vec<T> if_negative, Vec<T> otherwise) {
  return select<T>(x.raw < Vec<T>(T(0)).raw, if_negative, otherwise);
}

template <class T>
FASTRNN_INLINE typename Vec<T>::RawInteger bits(Vec<T> x) {
  return reinterpret_cast<typename Vec<T>::RawInteger>(x.raw);
}

template <class T>
FASTRNN_INLINE Vec<T> from_bits(typename Vec<T>::RawInteger x) {
  return Vec<T>(reinterpret_cast<typename Vec<T>::Raw>(x));
}

template <class T>
FASTRNN_INLINE Vec<T> absolute(Vec<T> x) {
  return from_bits<T>(bits(x) & ~bits(Vec<T>(T(-0.0))));
}

template <class T>
FASTRNN_INLINE Vec<T> copy_sign(Vec<T> magnitude, Vec<T> sign) {
  auto mask = bits(Vec<T>(T(-0.0)));
  return from_bits<T>((bits(magnitude) & ~mask) | (bits(sign) & mask));
}

#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> scale_by_power(Vec<float> x, Vec<float> n) {
  return Vec<float>(_mm512_maskz_scalef_ps(static_cast<__mmask16>(-1), x.raw, n.raw));
}
FASTRNN_INLINE Vec<double> scale_by_power(Vec<double> x, Vec<double> n) {
  return Vec<double>(_mm512_maskz_scalef_pd(static_cast<__mmask8>(-1), x.raw, n.raw));
}
#else
// In two factors, each a normal number: only the second product can round, in the subnormal range.
template <class T>
FASTRNN_INLINE Vec<T> scale_by_power(Vec<T> x, Vec<T> n) {
  using R = Register<T>;
  Vec<T> magic(Exponential<T>::round_magic);
  auto exponent = bits(n + magic) - bits(magic);
  auto half = exponent >> 1;
  auto first = from_bits<T>((half + R::exponent_bias) << R::mantissa_bits);
  auto second = from_bits<T>((exponent - half + R::exponent_bias) << R::mantissa_bits);
  return x * first * second;
}
#endif

template <class T>
FASTRNN_INLINE Vec<T> divide(Vec<T> numerator, Vec<T> denominator) {
  return numerator / denominator;
}
#if defined(__AVX512F__)
// Newton on the 14-bit reciprocal, then one correction of the quotient: the divider is left idle,
// which is cheaper here than waiting for it (bench/activations.cpp).
FASTRNN_INLINE Vec<float> divide(Vec<float> numerator, Vec<float> denominator) {
  Vec<float> y(_mm512_maskz_rcp14_ps(static_cast<__mmask16>(-1), denominator.raw));
  y = multiply_add(multiply_add(-denominator, y, Vec<float>(1.0f)), y, y);
  Vec<float> q = numerator * y;
  return multiply_add(multiply_add(-denominator, q, numerator), y, q);
}
#endif

}  // namespace fastrnn::FASTRNN_TARGET
