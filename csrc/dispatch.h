// Picks the kernel table of the best instruction set that this CPU has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastrnn {

// The table in use. FASTRNN_ISA names another; one that this CPU lacks or this build does not know
// throws std::runtime_error, because a quiet fallback would make every measurement a lie.
const KernelTable& kernel_table();

// Names of the instruction sets that this build has and this CPU can run, from the plainest.
std::vector<std::string> usable_isas();

}  // namespace fastrnn
