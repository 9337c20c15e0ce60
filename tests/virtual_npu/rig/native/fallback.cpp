// A kernel for every operator of the virtual NPU: device memory is host memory (runtime.c), so an
// operator on NPU tensors is the CPU's operator on aliases of the same memory. It replaces the wheel's
// kernels by name; the wheel's dispatch, schemas and autograd formulas stay above it.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <vector>

namespace {
using c10::IValue;
constexpr auto NPU = c10::DeviceType::PrivateUse1;

bool on_npu(const at::Tensor& t) { return t.defined() && t.device().type() == NPU; }

// The same memory as a CPU tensor; it keeps the original alive.
at::Tensor host_view(const at::Tensor& t) {
  if (!on_npu(t)) return t;
  auto options = at::TensorOptions().dtype(t.dtype()).device(at::kCPU);
  auto made = t.numel() ? at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [t](void*) {}, options)
                        : at::empty_strided(t.sizes(), t.strides(), options);
  if (t.is_conj()) made._set_conj(true);
  if (t.is_neg()) made._set_neg(true);
  return made;
}

// A copy on the device, laid out alike.
at::Tensor lift(const at::Tensor& t, c10::Device device) {
  if (!t.defined() || !t.device().is_cpu()) return t;
  auto made = at::empty_strided(t.sizes(), t.strides(), t.options().device(device).pinned_memory(false));
  if (t.numel()) host_view(made).copy_(t);
  return made;
}

// Random operators draw CPU numbers from the NPU generator's seed and offset, so that its state can be
// saved and restored; the CPU's own generator is left as it was.
class Draw {
 public:
  Draw(bool random, c10::Device device, const at::Generator& given) : cpu_(at::detail::getDefaultCPUGenerator()) {
    if (!random) return;
    auto generator = given.defined() ? given : at::globalContext().defaultGenerator(device);
    uint64_t seed, offset;
    {
      std::lock_guard<std::mutex> lock(generator.mutex());
      seed = generator.current_seed();
      offset = generator.get_offset();
      generator.set_offset(offset + 4);
    }
    before_ = cpu_.get_state();
    cpu_.set_current_seed(seed * 0x9E3779B97F4A7C15ull + offset);
  }
  ~Draw() {
    if (before_.defined()) cpu_.set_state(before_);
  }

 private:
  at::Generator cpu_;
  at::Tensor before_;
};

struct Call {
  const c10::FunctionSchema& schema;
  std::vector<IValue> given;
  std::vector<IValue> passed;
  std::vector<std::vector<std::pair<at::Tensor, at::Tensor>>> pairs;  // of each argument: given, alias
  c10::Device device{NPU, 0};
  at::Generator generator;
  bool has_npu = false, names_npu = false, names_other = false;

  Call(const c10::FunctionSchema& s, std::vector<IValue> values) : schema(s), given(std::move(values)) {
    pairs.resize(given.size());
    for (size_t i = 0; i < given.size(); i++) {
      passed.push_back(schema.arguments()[i].name() == "pin_memory" ? IValue() : translate(given[i], i));
    }
  }

  at::Tensor take(const at::Tensor& t, size_t i) {
    if (on_npu(t)) {
      device = t.device();
      has_npu = true;
    }
    pairs[i].emplace_back(t, host_view(t));
    return pairs[i].back().second;
  }

  IValue translate(const IValue& v, size_t i) {
    if (v.isTensor()) return take(v.toTensor(), i);
    if (v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> t : v.toOptionalTensorList())
        list.push_back(t && t->defined() ? std::optional<at::Tensor>(take(*t, i)) : std::nullopt);
      return list;
    }
    if (v.isTensorList() || (v.isList() && v.toList().elementType()->isSubtypeOf(*c10::TensorType::get()))) {
      c10::List<at::Tensor> list;
      for (const IValue& t : v.toListRef()) list.push_back(take(t.toTensor(), i));
      return list;
    }
    if (v.isDevice()) {
      if (v.toDevice().type() != NPU) {
        names_other = true;
        return v;
      }
      device = v.toDevice();
      names_npu = true;
      return c10::Device(at::kCPU);
    }
    if (v.isGenerator() && v.toGenerator().device().type() == NPU) {
      generator = v.toGenerator();
      return IValue();
    }
    return v;
  }

  // A device refuses tensors of another one, numbers aside; copies and indices may mix.
  void refuse_mixtures() const {
    const auto& name = schema.name();
    auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (!has_npu || has("copy") || has("index") || has("attention_v3") || has("attention_grad_v3")) return;
    for (auto& list : pairs)
      for (auto& [original, other] : list)
        TORCH_CHECK(!original.defined() || on_npu(original) || original.dim() == 0,
                    "Expected all tensors to be on the same device, but found at least two devices, npu:0 and "
                    "cpu! (", name, ")");
  }

  // out= and in-place arguments may have been given another size.
  void write_back() const {
    for (size_t i = 0; i < given.size(); i++) {
      auto* info = schema.arguments()[i].alias_info();
      if (!info || !info->isWrite()) continue;
      for (auto [original, other] : pairs[i]) {
        if (!on_npu(original) || (original.sizes() == other.sizes() && original.numel())) continue;
        if (original.sizes() != other.sizes()) original.resize_(other.sizes());
        if (original.numel()) host_view(original).copy_(other);
      }
    }
  }

  // A result that is one of the arguments stays that argument; anything else goes to the device.
  IValue back(const IValue& v, const c10::Argument& returned) const {
    if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : v.toTensorList()) list.push_back(names_other ? t : lift(t, device));
      return list;
    }
    if (!v.isTensor()) return v;
    const auto& result = v.toTensor();
    auto* info = returned.alias_info();
    if (info && info->isWrite())
      for (size_t i = 0; i < given.size(); i++) {
        auto* own = schema.arguments()[i].alias_info();
        if (own && own->beforeSets() == info->beforeSets() && given[i].isTensor()) return given[i];
      }
    if (!result.defined()) return v;
    for (auto& list : pairs)
      for (auto& [original, other] : list) {
        if (!on_npu(original)) continue;
        if (names_other && other.is_alias_of(result)) return result.clone();
        if (!names_other && other.unsafeGetTensorImpl() == result.unsafeGetTensorImpl()) return original;
      }
    return names_other ? v : IValue(lift(result, device));
  }
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  Call call(schema, torch::jit::last(stack, count).vec());
  call.refuse_mixtures();
  torch::jit::Stack inner(call.passed.begin(), call.passed.end());
  {
    bool random = op.hasTag(at::Tag::nondeterministic_seeded) && (call.has_npu || call.names_npu);
    Draw draw(random, call.device, call.generator);
    op.callBoxed(&inner);
  }
  call.write_back();
  torch::jit::drop(stack, count);
  for (size_t i = 0; i < inner.size(); i++) torch::jit::push(stack, call.back(inner[i], schema.returns()[i]));
}

std::vector<std::unique_ptr<torch::Library>> libraries;

void replace(const std::string& space, const std::vector<std::string>& names) {
  libraries.emplace_back(
      new torch::Library(torch::Library::IMPL, space, c10::DispatchKey::PrivateUse1, __FILE__, __LINE__));
  for (auto& name : names)
    libraries.back()->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}
}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("replace", &replace); }
