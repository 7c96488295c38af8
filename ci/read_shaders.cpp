// Reads shaders as `spirv-val` and `glslangValidator` do, through their libraries: a process for each of thousands
// of shaders takes longer than the reading, above all HLSL, whose built-in functions glslang then parses anew.
//
// On standard input a line for each shader, its fields parted by tabs: `spirv VULKAN PATH` (1.0 or 1.3),
// `glsl - PATH` or `hlsl ENTRY PATH`. On standard output what each reader says, the shader's path first.
// The exit status is 1 if any shader is refused, cannot be read or is warned of, and 0 otherwise.
#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <iterator>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <glslang/Public/ResourceLimits.h>
#include <glslang/Public/ShaderLang.h>
#include <glslang/SPIRV/GlslangToSpv.h>
#include <spirv-tools/libspirv.hpp>

struct Task {
    std::string language, argument, path;
};

// `spirv-val --target-env vulkanVULKAN`.
static bool spirv(const Task& task, const std::string& bytes, std::string& said) {
    if (task.argument != "1.0" && task.argument != "1.3") {
        said = "error: no Vulkan " + task.argument + " is known here\n";
        return false;
    }
    if (bytes.empty() || bytes.size() % 4) {
        said = "error: not of whole words\n";
        return false;
    }
    spvtools::SpirvTools tools(task.argument == "1.0" ? SPV_ENV_VULKAN_1_0 : SPV_ENV_VULKAN_1_3);
    tools.SetMessageConsumer([&](spv_message_level_t level, const char*, const spv_position_t& at, const char* text) {
        const char* name = level <= SPV_MSG_ERROR ? "error" : "note";
        said += std::string(name) + ": " + std::to_string(at.index) + ": " + text + "\n";
    });
    std::vector<uint32_t> words(bytes.size() / 4);
    bytes.copy(reinterpret_cast<char*>(words.data()), bytes.size());
    return tools.Validate(words);
}

// `glslangValidator -S comp`.
static bool glsl(const Task&, const std::string& text, std::string& said) {
    glslang::TShader shader(EShLangCompute);
    const char* texts[] = {text.c_str()};
    shader.setStrings(texts, 1);
    bool well = shader.parse(GetDefaultResources(), 100, false, EShMsgDefault);
    said = shader.getInfoLog();
    return well;
}

// `glslangValidator -D -V --hlsl-enable-16bit-types -S comp -e ENTRY`.
static bool hlsl(const Task& task, const std::string& text, std::string& said) {
    const auto rules = static_cast<EShMessages>(EShMsgSpvRules | EShMsgVulkanRules | EShMsgReadHlsl | EShMsgHlslEnable16BitTypes);
    glslang::TShader shader(EShLangCompute);
    const char* texts[] = {text.c_str()};
    shader.setStrings(texts, 1);
    shader.setEntryPoint(task.argument.c_str());
    shader.setEnvInput(glslang::EShSourceHlsl, EShLangCompute, glslang::EShClientVulkan, 100);
    shader.setEnvClient(glslang::EShClientVulkan, glslang::EShTargetVulkan_1_0);
    shader.setEnvTarget(glslang::EShTargetSpv, glslang::EShTargetSpv_1_0);
    bool well = shader.parse(GetDefaultResources(), 100, false, rules);
    said = shader.getInfoLog();
    if (!well)
        return false;
    glslang::TProgram program;
    program.addShader(&shader);
    well = program.link(rules) && program.mapIO();
    said += program.getInfoLog();
    if (!well)
        return false;
    std::vector<unsigned int> words;
    spv::SpvBuildLogger logger;
    glslang::GlslangToSpv(*program.getIntermediate(EShLangCompute), words, &logger);
    said += logger.getAllMessages();
    return !words.empty();
}

static bool read(const Task& task, std::string& said) {
    std::ifstream file(task.path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file.is_open() || file.bad()) {
        said = "error: cannot be read\n";
        return false;
    }
    if (task.language == "spirv")
        return spirv(task, text, said);
    if (task.language == "glsl")
        return glsl(task, text, said);
    if (task.language == "hlsl")
        return hlsl(task, text, said);
    said = "error: no reader of " + task.language + "\n";
    return false;
}

int main() {
    std::vector<Task> tasks;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream fields(line);
        Task task;
        std::getline(fields, task.language, '\t');
        std::getline(fields, task.argument, '\t');
        std::getline(fields, task.path);
        tasks.push_back(task);
    }
    if (!glslang::InitializeProcess())
        return 2;
    std::atomic<size_t> next = 0;
    std::atomic<bool> refused = false;
    std::mutex output;
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < std::max(1u, std::thread::hardware_concurrency()); ++thread)
        threads.emplace_back([&] {
            for (size_t at; (at = next++) < tasks.size();) {
                std::string said;
                if (read(tasks[at], said) && said.empty())
                    continue;
                std::lock_guard<std::mutex> lock(output);
                std::cout << tasks[at].path << ": error: refused\n" << said;
                refused = true;
            }
        });
    for (auto& thread : threads)
        thread.join();
    glslang::FinalizeProcess();
    std::cout << tasks.size() << " read\n";
    return refused;
}
