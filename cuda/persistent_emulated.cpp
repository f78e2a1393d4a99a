#include "persistent_emulated.h"

#include <memory>
#include <stdexcept>

#include "group_emulated.h"
#include "steps_tape.h"

namespace fastrnn::FASTRNN_TARGET {
namespace {

template <class Run, class Call>
void emulate_blocks(const Plan& plan, Call call, int directions) {
  call.layout = layout_of(plan.shape);
  run_emulated(plan.shape, plan.policy, directions, plan.row_groups,
               [&](EmulatedGroup& group, int d, int row_group) {
                 std::make_unique<Run>(group, call, call.chain[d], d, row_group)->run();
               });
}

template <class Cell, Precision precision, class T>
void emulate_kernel(const Plan& plan, const PersistentForwardCall<T>& call, int directions) {
  constexpr int depth = depth_of(1, Cell::gates, Operand<precision>::step, Operand<precision>::parts);
  emulate_blocks<PersistentForward<Cell, precision, depth, T, EmulatedGroup>>(plan, call, directions);
}
template <class Cell, Precision precision, class T>
void emulate_kernel(const Plan& plan, const PersistentBackwardCall<T>& call, int directions) {
  constexpr int depth = depth_of(1, Cell::gates, Operand<precision>::step, Operand<precision>::parts);
  emulate_blocks<PersistentBackward<Cell, precision, depth, T, EmulatedGroup>>(plan, call, directions);
}

template <class Cell, template <class> class Call>
void emulate_kind(const Plan& plan, StorageKind kind, const Call<float>& call, int directions) {
  if (kind == StorageKind::tf32) return emulate_kernel<Cell, Precision::tf32>(plan, call, directions);
  emulate_kernel<Cell, Precision::float32>(plan, call, directions);
}
template <class Cell, template <class> class Call>
void emulate_kind(const Plan& plan, StorageKind, const Call<Bfloat16>& call, int directions) {
  emulate_kernel<Cell, Precision::bf16>(plan, call, directions);
}
template <class Cell, template <class> class Call>
void emulate_kind(const Plan& plan, StorageKind, const Call<Half>& call, int directions) {
  emulate_kernel<Cell, Precision::fp16>(plan, call, directions);
}

}  // namespace

template <class Call>
void emulate_persistent(const Plan& plan, CellKind cell, StorageKind kind, const Call& call, int directions) {
  if (plan.policy == Policy::steps || !is_emulated(plan)) {
    throw std::logic_error("plan: expected one that fits the device, got " + plan.why);
  }
  with_phase(cell, 0, [&](auto* known) {
    using Cell = std::remove_pointer_t<decltype(known)>;
    if constexpr (Cell::has_peephole || Cell::keeps_slots || Cell::slot_offset > 0) {
      throw std::logic_error(std::string("cell: expected one with a persistent kernel, got ") +
                             name_of(cell));
    } else {
      emulate_kind<Cell>(plan, kind, call, directions);
    }
  });
}

#define FASTRNN_EMULATED(T)                                                                             \
  template void emulate_persistent(const Plan&, CellKind, StorageKind, const PersistentForwardCall<T>&, \
                                   int);                                                                \
  template void emulate_persistent(const Plan&, CellKind, StorageKind, const PersistentBackwardCall<T>&, int);
FASTRNN_EMULATED(float)
FASTRNN_EMULATED(Bfloat16)
FASTRNN_EMULATED(Half)

}  // namespace fastrnn::FASTRNN_TARGET
