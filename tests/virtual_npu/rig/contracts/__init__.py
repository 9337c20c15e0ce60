"""Reference kernels of torch_npu's fused operators; they refuse what the vendor's documents forbid.

Written from op-plugin's documents and not from the plugin they judge. Source of each rule, in its
message: DOC is docs/zh/custom_APIs/torch_npu/torch_npu-<operator>.md of op-plugin, CPP its
op_plugin/ops/opapi/*.cpp, YAML its op_plugin/config/derivatives.yaml.
"""
