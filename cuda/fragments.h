// What one warp multiplies: the fragments of mma.sync m16n8k16 (bf16, fp16) and m16n8k8 (tf32), after the
// figures of the PTX ISA, section "Warp-level matrix instructions". 32 lanes hold a left matrix (16, step), a
// right one (step, 8) and their product (16, 8) in float32; which lane has which element is said here alone,
// for host and device. On the host the same instructions are plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lane.h"
#include "numbers.h"

#if defined(__CUDACC__)
#define FASTRNN_DEVICE __device__ __forceinline__
#else
#define FASTRNN_DEVICE inline
#endif
// Arrays in registers need loops without a counter. The host does not care.
#if defined(__CUDA_ARCH__)
#define FASTRNN_UNROLL _Pragma("unroll")
#define FASTRNN_UNROLL_BY(n) FASTRNN_PRAGMA(unroll n)
#define FASTRNN_PRAGMA(text) _Pragma(#text)
#else
#define FASTRNN_UNROLL
#define FASTRNN_UNROLL_BY(n)
#endif

namespace fastrnn::FASTRNN_TARGET {

// Global memory by a pointer that was read from shared memory, of which nvcc would make generic accesses. A
// read stays where it is written, ahead of a wait that hides it.
template <class T>
FASTRNN_DEVICE T read_global(const T* from) {
#if defined(__CUDA_ARCH__)
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  T value;
  if constexpr (sizeof(T) == 4) {
    std::uint32_t bits;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(bits) : "l"(__cvta_generic_to_global(from)));
    memcpy(&value, &bits, sizeof value);
  } else {
    std::uint16_t bits;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(bits) : "l"(__cvta_generic_to_global(from)));
    memcpy(&value, &bits, sizeof value);
  }
  return value;
#else
  return *from;
#endif
}
template <class T>
FASTRNN_DEVICE void write_global(T* to, T value) {
#if defined(__CUDA_ARCH__)
  static_assert(sizeof(T) == 2 || sizeof(T) == 4);
  if constexpr (sizeof(T) == 4) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof value);
    asm volatile("st.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(bits) : "memory");
  } else {
    std::uint16_t bits;
    memcpy(&bits, &value, sizeof value);
    asm volatile("st.global.u16 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "h"(bits) : "memory");
  }
#else
  memcpy(to, &value,
         sizeof value);  // seen: GCC 12 -O2 dropped a vectorized loop of `*to = value`
#endif
}

constexpr int warp_lanes = 32, panel_rows = 16, tile_columns = 8;

// ---- which lane has what ------------------------------------------------------------------------------

struct Position {
  int row, column;
};

// Of one fragment with k = `step`; a register has one or two elements. "The i-th element" counts over the
// registers of one lane.
template <int depth>
struct FragmentLayout {
  static constexpr int step = depth, per_register = depth / 8, half = 4 * per_register;
  static constexpr int left_elements = 4 * per_register, right_elements = 2 * per_register;

  FASTRNN_HD static constexpr Position left(int lane, int i) {
    const int reg = i / per_register;
    return {lane / 4 + 8 * (reg % 2), lane % 4 * per_register + i % per_register + half * (reg / 2)};
  }
  FASTRNN_HD static constexpr Position right(int lane, int i) {
    return {lane % 4 * per_register + i % per_register + half * (i / per_register), lane / 4};
  }
  // The other way round: element i of which lane is (row, column).
  FASTRNN_HD static constexpr int right_lane(Position p) {
    return p.column * 4 + p.row % half / per_register;
  }
  FASTRNN_HD static constexpr int right_element(Position p) {
    return p.row / half * per_register + p.row % per_register;
  }
};

FASTRNN_HD constexpr Position product_position(int lane, int i) {
  return {lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2};
}

// ---- operands -----------------------------------------------------------------------------------------

// In what the recurrent products are formed, sums always in float32. float32 is three products of tf32 parts
// (a = high + low, and low * low is dropped), with a relative error of about 2^-21 (Ootomo & Yokota 2022).
enum class Precision : int { bf16, fp16, tf32, float32, count };

// Element: as states are exchanged. Registers of the left operand: 4 for each of its parts, of the right 2.
template <Precision precision>
struct Operand;

template <>
struct Operand<Precision::bf16> : FragmentLayout<16> {
  static constexpr int parts = 1;
  using Element = std::uint16_t;
  FASTRNN_HD static Element rounded(float x) { return bfloat16_bits(x); }
  FASTRNN_HD static float value(std::uint32_t word, int i) {
    return from_bfloat16(static_cast<std::uint16_t>(word >> 16 * i));
  }
};
template <>
struct Operand<Precision::fp16> : FragmentLayout<16> {
  static constexpr int parts = 1;
  using Element = std::uint16_t;
  FASTRNN_HD static Element rounded(float x) { return half_bits(x); }
  FASTRNN_HD static float value(std::uint32_t word, int i) {
    return from_half(static_cast<std::uint16_t>(word >> 16 * i));
  }
};
template <>
struct Operand<Precision::tf32> : FragmentLayout<8> {
  static constexpr int parts = 1;
  using Element = std::uint32_t;
  FASTRNN_HD static Element rounded(float x) { return tf32_bits(x); }
  FASTRNN_HD static float value(std::uint32_t word, int) { return bits_as<float>(word); }
};
template <>
struct Operand<Precision::float32> : FragmentLayout<8> {
  static constexpr int parts = 2;
  using Element = std::uint32_t;
  FASTRNN_HD static Element rounded(float x) { return bits_as<std::uint32_t>(x); }
  FASTRNN_HD static float value(std::uint32_t word, int) { return bits_as<float>(word); }
};

// Registers of one lane; part p of register r at [p * registers + r].
template <class Op>
struct Left {
  static constexpr int registers = 4;
  std::uint32_t word[registers * Op::parts];
};
template <class Op>
struct Right {
  static constexpr int registers = 2;
  std::uint32_t word[registers * Op::parts];
};
struct Accumulator {
  float value[4];
};

// High and low part of a float32. An infinite one is all in its low part: the other operand's low part, often
// zero, meets this one's high part, and 0 * infinity would be NaN.
FASTRNN_HD inline void split_tf32(float x, std::uint32_t& high, std::uint32_t& low) {
  constexpr std::uint32_t infinity = 0x7F800000;
  high = tf32_bits(x);
  if ((high & 0x7FFFFFFF) == infinity) {  // or rounds to it
    const auto bits = bits_as<std::uint32_t>(x);
    high = (bits & 0x7FFFFFFF) == infinity ? 0 : bits & ~0x1FFFu;
  }
  low = tf32_bits(x - bits_as<float>(high));
}

// The left fragment of a matrix, at(row, column) being its element.
template <class Op, class At>
FASTRNN_HD inline Left<Op> left_fragment(int lane, const At& at) {
  Left<Op> fragment;
  FASTRNN_UNROLL
  for (int r = 0; r < Left<Op>::registers; ++r) {
    std::uint32_t word = 0;
    FASTRNN_UNROLL
    for (int e = 0; e < Op::per_register; ++e) {
      const Position p = Op::left(lane, r * Op::per_register + e);
      word |= static_cast<std::uint32_t>(Op::rounded(at(p.row, p.column))) << (16 * e);
    }
    if constexpr (Op::parts == 2) {
      split_tf32(bits_as<float>(word), fragment.word[r], fragment.word[Left<Op>::registers + r]);
    } else {
      fragment.word[r] = word;
    }
  }
  return fragment;
}

// Element `i` of a left fragment, as the sum of its parts: for tests and the emulation.
template <class Op>
FASTRNN_HD inline float element_of(const Left<Op>& fragment, int i, int part) {
  return Op::value(fragment.word[part * Left<Op>::registers + i / Op::per_register], i % Op::per_register);
}
template <class Op>
FASTRNN_HD inline float element_of(const Right<Op>& fragment, int i, int part) {
  return Op::value(fragment.word[part * Right<Op>::registers + i / Op::per_register], i % Op::per_register);
}

// The right fragments of states lie in memory as lanes read them: two words of each lane in turn, 256 bytes
// for `step` units of 8 rows of a batch.
constexpr int right_bytes = warp_lanes * 2 * 4;

FASTRNN_HD inline std::uint64_t right_words(const char* fragment, int lane) {
  std::uint64_t both;
  memcpy(&both, __builtin_assume_aligned(fragment + lane * 8, 8), sizeof both);
  return both;
}
template <class Op>
FASTRNN_HD inline Right<Op> right_of(std::uint64_t both) {
  Right<Op> right;
  const auto first = static_cast<std::uint32_t>(both), second = static_cast<std::uint32_t>(both >> 32);
  if constexpr (Op::parts == 2) {
    split_tf32(bits_as<float>(first), right.word[0], right.word[2]);
    split_tf32(bits_as<float>(second), right.word[1], right.word[3]);
  } else {
    right.word[0] = first;
    right.word[1] = second;
  }
  return right;
}

// Byte of element (k, column) of such fragments, k counting over the steps of one row of fragments, in which
// those of `matrices` take turns.
template <class Op, int matrices = 1>
FASTRNN_HD constexpr std::int64_t right_byte(std::int64_t k, int column) {
  const Position p{static_cast<int>(k % Op::step), column};
  return k / Op::step * (matrices * right_bytes) + Op::right_lane(p) * 8 +
         Op::right_element(p) * static_cast<int>(sizeof(typename Op::Element));
}
template <class Op, int matrices = 1>
FASTRNN_HD inline void put_right(char* fragments, std::int64_t k, int column, float x) {
  *reinterpret_cast<typename Op::Element*>(fragments + right_byte<Op, matrices>(k, column)) = Op::rounded(x);
}

// ---- a warp -------------------------------------------------------------------------------------------

// What each lane of a warp has of its own. A thread of a device has its lane's; the emulation has all.
template <class F>
class Lanes {
 public:
#if defined(__CUDACC__)
  FASTRNN_DEVICE F& operator[](int) { return own_; }
  FASTRNN_DEVICE const F& operator[](int) const { return own_; }

 private:
  F own_;
#else
  F& operator[](int lane) { return all_[lane]; }
  const F& operator[](int lane) const { return all_[lane]; }

 private:
  F all_[warp_lanes];
#endif
};

#if defined(__CUDACC__)

#define FASTRNN_MULTIPLY_16(TYPE)                                                      \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                           \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
      : "+f"(sum.value[0]), "+f"(sum.value[1]), "+f"(sum.value[2]), "+f"(sum.value[3]) \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))

// sum += left * right, of one part each.
template <Precision precision>
__device__ __forceinline__ void multiply_parts(Accumulator& sum, const std::uint32_t* left,
                                               const std::uint32_t* right) {
  if constexpr (precision == Precision::bf16) {
    FASTRNN_MULTIPLY_16("bf16");
  } else if constexpr (precision == Precision::fp16) {
    FASTRNN_MULTIPLY_16("f16");
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum.value[0]), "+f"(sum.value[1]), "+f"(sum.value[2]), "+f"(sum.value[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
}

#undef FASTRNN_MULTIPLY_16

// By all lanes of a warp together.
template <Precision precision>
FASTRNN_DEVICE void multiply(Lanes<Accumulator>& sum, const Lanes<Left<Operand<precision>>>& left,
                             const Lanes<Right<Operand<precision>>>& right) {
  const std::uint32_t *const a = left[0].word, *const b = right[0].word;
  if constexpr (Operand<precision>::parts == 2) {
    multiply_parts<precision>(sum[0], a + 4, b);
    multiply_parts<precision>(sum[0], a, b + 2);
  }
  multiply_parts<precision>(sum[0], a, b);
}

#else

template <Precision precision>
void multiply_parts(Lanes<Accumulator>& sum, const Lanes<Left<Operand<precision>>>& left, int left_part,
                    const Lanes<Right<Operand<precision>>>& right, int right_part) {
  using Op = Operand<precision>;
  float a[panel_rows][Op::step], b[Op::step][tile_columns];
  for (int lane = 0; lane < warp_lanes; ++lane) {
    for (int i = 0; i < Op::left_elements; ++i) {
      const Position p = Op::left(lane, i);
      a[p.row][p.column] = element_of(left[lane], i, left_part);
    }
    for (int i = 0; i < Op::right_elements; ++i) {
      const Position p = Op::right(lane, i);
      b[p.row][p.column] = element_of(right[lane], i, right_part);
    }
  }
  for (int lane = 0; lane < warp_lanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Position p = product_position(lane, i);
      float& value = sum[lane].value[i];
      for (int k = 0; k < Op::step; ++k) value = std::fma(a[p.row][k], b[k][p.column], value);
    }
  }
}

template <Precision precision>
void multiply(Lanes<Accumulator>& sum, const Lanes<Left<Operand<precision>>>& left,
              const Lanes<Right<Operand<precision>>>& right) {
  if constexpr (Operand<precision>::parts == 2) {
    multiply_parts<precision>(sum, left, 1, right, 0);
    multiply_parts<precision>(sum, left, 0, right, 1);
  }
  multiply_parts<precision>(sum, left, 0, right, 0);
}

#endif

}  // namespace fastrnn::FASTRNN_TARGET
