#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace fastrnn {

#if defined(__x86_64__)
namespace x86_64_v2 {
extern const KernelTable table;
}
#if !defined(FASTRNN_BASELINE)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable table;
}
#endif

namespace {

struct Target {
  const KernelTable* table;
  bool usable;
};

std::vector<Target> targets() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
#if defined(FASTRNN_BASELINE)
  return {{&x86_64_v2::table, v2}};
#else
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return {{&x86_64_v2::table, v2}, {&avx2::table, avx2}, {&avx512::table, avx512}};
#endif
#elif defined(__aarch64__)
  return {{&neon::table, true}};
#endif
}

const KernelTable& choose() {
  const char* wanted = std::getenv("FASTRNN_ISA");
  if (wanted && !*wanted) wanted = nullptr;
  const KernelTable* best = nullptr;
  std::string known;
  for (const Target& target : targets()) {
    const std::string name = target.table->isa;
    if (wanted && name == wanted) {
      if (!target.usable) {
        throw std::runtime_error("FASTRNN_ISA: this CPU cannot run '" + name + "'");
      }
      return *target.table;
    }
    if (target.usable) best = target.table;
    known += (known.empty() ? "" : ", ") + name;
  }
  if (wanted) {
    throw std::runtime_error("FASTRNN_ISA: expected one of " + known + ", got '" + wanted + "'");
  }
  if (!best) throw std::runtime_error("this CPU has none of the instruction sets " + known);
  return *best;
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& table = choose();
  return table;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Target& target : targets()) {
    if (target.usable) names.push_back(target.table->isa);
  }
  return names;
}

}  // namespace fastrnn
