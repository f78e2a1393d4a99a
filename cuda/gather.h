// Makes an array of any strides contiguous, on its device.
#pragma once

#include "lane.h"
#include "runtime.h"

namespace fastrnn::FASTRNN_TARGET {

template <class Word>
struct Gather {
  Word* to;
  StridedArray from;

  // Row: over all axes but the last.
  FASTRNN_HD void operator()(std::int64_t row, std::int64_t column) const {
    const char* at = static_cast<const char*>(from.data) + column * from.stride[3];
    std::int64_t rest = row;
    for (int axis = 2; axis >= 0; --axis) {
      at += rest % from.size[axis] * from.stride[axis];
      rest /= from.size[axis];
    }
    to[row * from.size[3] + column] = *reinterpret_cast<const Word*>(at);
  }
};

template <class Turn>
void gather(Turn& turn, void* to, const StridedArray& from) {
  const std::int64_t rows = from.size[0] * from.size[1] * from.size[2];
  if (rows == 0 || from.size[3] == 0) return;
  const auto run = [&](auto* words) {
    turn.launch(rows, from.size[3], Gather<std::remove_pointer_t<decltype(words)>>{words, from});
  };
  switch (from.element_bytes) {
    case 1:
      return run(static_cast<std::uint8_t*>(to));
    case 2:
      return run(static_cast<std::uint16_t*>(to));
    case 4:
      return run(static_cast<std::uint32_t*>(to));
    default:
      return run(static_cast<std::uint64_t*>(to));
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
