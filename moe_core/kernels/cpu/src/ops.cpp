// Kernels for processors, sums in float32. Compiled once for each instruction set, with TURNOUT_ISA as the namespace.
#include "ops.h"

#include "adamw.h"
#include "attention.h"
#include "attention_back.h"
#include "largest.h"
#include "limits.h"
#include "linear.h"
#include "mixture.h"
#include "quantise.h"
#include "row_experts.h"
#include "step_of_model.h"
#include "training.h"

namespace TURNOUT_ISA {

extern const turnout::Ops kOps;
const turnout::Ops kOps = {linear,   experts, mixture,       map,     map_heads,  look_up,     pack, most_strays,
                            quantise, attend,  attend_prompt, largest, tiles_work, read_memory, multiply_registers, choose,
                            step,
                            head_errors, swiglu, swiglu_back, combine, norm, norm_back, turn_heads, adamw, squares, attention_back};

}  // namespace TURNOUT_ISA
