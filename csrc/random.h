// Counter-based random numbers: Philox 4x32-7 (Salmon et al. 2011), the fewest rounds that pass every test
// there. A mask is a pure function of the seed and of what it is a mask for, so it does not depend on threads
// or tiles, CPU and CUDA draw the same one, and backward can draw it again instead of storing it.
//
// Of unit u of batch row `row` at time `step` (or of column u of row `row` of a weight matrix), the number is
// word (u / 16) % 4 of the counter (u / 64 * 16 + u % 16, row, step, stream): units that lie next to each
// other then lie next to each other in the registers that compute 16 counters at once.
#pragma once

#include <cstdint>

#include "activations.h"

namespace fastrnn {

// What a mask is of: with its layer and direction it has a stream of numbers of its own.
enum class MaskKind : int { dropout, input, recurrent, weight, zoneout_h, zoneout_c, count };

const char* name_of(MaskKind kind);

inline bool is_zoneout(MaskKind kind) { return kind == MaskKind::zoneout_h || kind == MaskKind::zoneout_c; }

inline std::uint32_t stream_of(MaskKind kind, std::int64_t layer, std::int64_t direction) {
  return static_cast<std::uint32_t>((layer * 2 + direction) * 8 + static_cast<int>(kind));
}

constexpr int philox_rounds = 7;
constexpr std::uint32_t philox_multiplier0 = 0xD2511F53u, philox_multiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t philox_weyl0 = 0x9E3779B9u, philox_weyl1 = 0xBB67AE85u;
constexpr std::int64_t philox_block = 64;  // units that 16 counters serve

}  // namespace fastrnn
